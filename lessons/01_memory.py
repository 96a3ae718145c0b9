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
# 01 · Where does the memory go?

*How many GB does one AdamW step of Qwen3-8B need? And one of Qwen3-1.7B with QLoRA, at length 2,048?*

| | |
|---|---|
| Time | 60 to 75 minutes to read and do; the cells take under a minute on the `tiny` profile |
| Needs | lesson 00; no GPU |
| GPU memory | none on `tiny` and `laptop`; on `gpu` two short measurements in section 6, 3.5 GiB by prediction |

**You will be able to**

1. count a model's parameters from its config, module by module;
2. say which of three honest conventions (8, 12 or 16 bytes a parameter) a memory figure uses;
3. write the bill of one decoder layer's activations, and check it against what autograd really saves;
4. find the part that nobody counts, the logits, and remove it;
5. say what LoRA and QLoRA save, and what they do not; read a step's timeline, name its peak, and predict whether it fits a card.
"""

# %% [markdown] tags=["zh", "of-0c2306f2"]
"""
# 01 · 显存去了哪里？

*用 AdamW 对 Qwen3-8B 训练一步，要多少 GB 显存？序列长度 2,048、用 QLoRA 训练 Qwen3-1.7B 一步，又要多少？*

| | |
|---|---|
| 时间 | 读完做完约 60–75 分钟；`tiny` 配置下所有单元格加起来不到一分钟 |
| 需要 | 第 00 节；不需要 GPU |
| 显存 | `tiny` 和 `laptop` 不用；`gpu` 在第 6 部分有两次很短的实测，预测 3.5 GiB |

**学完之后，你能够**

1. 从模型的 config 出发，逐个模块数清参数量；
2. 看到一个显存数字，能说出它用的是三种合理口径（每个参数 8、12 或 16 字节）中的哪一种；
3. 逐项列出一个解码层的激活值账单，并与 autograd 真正保存的字节数核对；
4. 找出没人去数的那一部分——logits，并把它省掉；
5. 说清 LoRA 和 QLoRA 省了什么、没省什么；看懂一步训练的时间线，指出峰值在哪里，并预测放不放得进某张显卡。
"""

# %% [markdown] tags=["en"]
"""
The lecture's answer is: about 100 GB for full fine-tuning of the 8B model, 20 GB with LoRA, 10 GB with QLoRA. Before anything runs, two guesses of your own: the peak of one step with a single sequence of 2,048 tokens, gradient checkpointing on. Type a number in place of each `...`; this lesson comes back to them.

> **What changes on `laptop` and `gpu`.** Almost nothing. Predictions are arithmetic, and what is counted by running is counted on the book's tiny model on the CPU, whatever the profile: counting bytes needs no size. Section 6 also measures one real step of the profile's own model; that takes a minute or two with `laptop`, and with `gpu` a download first (lesson 00). On a GPU it then measures a second step there, of a twin with random weights, phase by phase.
"""

# %% [markdown] tags=["zh", "of-abcae8fc"]
"""
讲义的回答是：8B 模型全参数微调约 100 GB，LoRA 约 20 GB，QLoRA 约 10 GB。先别急着运行，自己猜两个数：只放一条长度为 2,048 的序列、打开梯度检查点（gradient checkpointing），训练一步的峰值显存是多少？把数字写在 `...` 的位置，后面会回来对答案。

> **换成 `laptop` 或 `gpu` 会怎样？** 几乎不变。预测只是算术；需要实际运行来数字节的地方，不管哪种配置，都在 CPU 上用本书的小模型来数，因为数字节和模型大小无关。第 6 部分还会实测配置中那个模型的一步训练；用 `laptop` 时要一两分钟，用 `gpu` 时要先下载模型（见第 00 节）。有 GPU 时，还会用随机权重的同款模型在上面再走一步，分阶段测量。
"""

# %%
import labkit

labkit.predict("p1_1", ..., unit="GB")  # full fine-tuning of Qwen3-8B
labkit.predict("p1_2", ..., unit="GB")  # QLoRA on Qwen3-1.7B

# %% [markdown] tags=["en"]
"""
## 1. Parameters, module by module

Everything follows from a few numbers in `config.json`. You will see them for the two models of this lesson. Look at `tied_embeddings`: the small model uses one matrix both to read tokens and to score them. Below it a trap, shown on four models: "q_proj is square" holds for two of them only.
"""

# %% [markdown] tags=["zh", "of-36bdc8f9"]
"""
## 1. 参数：逐个模块来数

一切都由 `config.json` 里的几个数决定。下面并排列出本节两个模型的这些数。请看 `tied_embeddings`：小模型用同一个矩阵既读入词元（token），又给词元打分。再往下用四个模型说明一个常见的坑：“q_proj 是方阵”只对其中两个成立。
"""

# %%
from labkit.models.shapes import shape_of

small, large = shape_of("qwen3-1.7b"), shape_of("qwen3-8b")
names = ("vocab_size", "hidden_size", "intermediate_size", "n_layers", "n_heads", "n_kv_heads", "head_dim")
for name in (*names, "tied_embeddings"):
    print(f"{name:18} {getattr(small, name)!s:>8} {getattr(large, name)!s:>8}")

# %%
for name in ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b"):
    d_in, d_out = shape_of(name).linears()["q_proj"]
    print(f"{name:11} q_proj {d_in} -> {d_out}: {d_out / d_in:.1f} times as many outputs as inputs")

# %% [markdown] tags=["en"]
"""
Symbols for the whole lesson: *V* vocabulary, *h* hidden size, *i* width inside the MLP, *L* layers, *q* = heads × head_dim and *k* = kv_heads × head_dim. A linear layer from width *a* to width *b* holds *a* × *b* weights (no biases here). Expect three lines to hold nearly everything; look at the share of the embedding in the small model.
"""

# %% [markdown] tags=["zh", "of-5bdbbb55"]
"""
本节统一用这些符号：*V* 词表大小，*h* 隐藏维度，*i* MLP 内部宽度，*L* 层数，*q* = 头数 × head_dim，*k* = KV 头数 × head_dim。从宽度 *a* 到宽度 *b* 的线性层有 *a* × *b* 个权重（这里没有偏置）。几乎全部参数集中在三行里；请看小模型中嵌入层的占比。
"""

# %%
def modules(shape):
    V, h, i, L = shape.vocab_size, shape.hidden_size, shape.intermediate_size, shape.n_layers
    q, k = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    attention, mlp = L * (h * q + h * k + h * k + q * h), L * 3 * h * i
    norms, head = L * (2 * h + 2 * shape.head_dim) + h, 0 if shape.tied_embeddings else V * h
    names = ("embed_tokens", "q, k, v, o", "gate, up, down", "norms", "lm_head")
    return dict(zip(names, (V * h, attention, mlp, norms, head), strict=True))


for shape in (small, large):
    print(shape.name)
    for name, n in modules(shape).items():
        print(f"  {name:15} {n:>14,} {n / sum(modules(shape).values()):6.1%}")

# %% [markdown] tags=["en"]
"""
Is that right? transformers can build the real model on the `meta` device, where tensors have shapes but no memory. The next cell builds 8 billion parameters in a blink and asserts that both counts agree to the last parameter.
"""

# %% [markdown] tags=["zh", "of-c37f0d76"]
"""
数得对吗？transformers 可以在 `meta` 设备上搭出真正的模型：张量只有形状，不占内存。下面的单元格一眨眼就搭好 80 亿参数的模型，并断言两种数法一个参数都不差。
"""

# %%
from labkit.training.ledger import random_model

for shape in (small, large):
    model = random_model(shape, device="meta")
    n_params = sum(parameter.numel() for parameter in model.parameters())
    assert n_params == shape.n_params == sum(modules(shape).values())
    print(f"{shape.name}: {n_params:,} parameters, {2 * n_params / 1e9:.2f} GB in bfloat16")

# %% [markdown] tags=["en"]
"""
## 2. Gradients and optimizer states: three honest conventions

AdamW keeps two numbers for every parameter, a running mean of its gradient and of the square of its gradient. *In which precision?* That depends on who wrote the optimizer, and nothing moves a memory figure more. So do not trust a table: run one step of a small model and count the bytes of what is really there. Expect 8, 12 and 16 bytes a parameter; look at the sums.
"""

# %% [markdown] tags=["zh", "of-06158bf0"]
"""
## 2. 梯度与优化器状态：三种合理的口径

AdamW 为每个参数保存两个数：梯度的滑动平均，和梯度平方的滑动平均。*用什么精度保存？* 这取决于优化器是谁写的，而它对显存数字的影响最大。所以别急着相信任何表格：让小模型训练一步，把实际存在的字节数出来。预期是每个参数 8、12 和 16 字节，请看等号右边。
"""

# %%
import torch

tiny = shape_of("tiny")
ids = torch.randint(0, tiny.vocab_size, (2, 128))  # token ids: (batch, length)


def bytes_per_parameter(model, optimizer):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters()]
    states = [value for state in optimizer.state.values() for value in state.values()]
    kinds = (model.parameters(), gradients, filter(torch.is_tensor, states))
    return [round(sum(tensor.nbytes for tensor in kind) / tiny.n_params, 2) for kind in kinds]

# %%
from labkit.training.loading import quiet

with quiet():  # it would print a note about optional kernels
    import bitsandbytes

print("optimizer     dtype     weights + gradients + states")
for optimizer_class in (torch.optim.AdamW, bitsandbytes.optim.AdamW):
    for dtype in ("bfloat16", "float32"):
        model = random_model(tiny, dtype=dtype)
        each = bytes_per_parameter(model, optimizer_class(model.parameters()))
        name = optimizer_class.__module__.split(".")[0]
        print(f"{name:13} {dtype:9} {each[0]} + {each[1]} + {each[2]} = {sum(each)} bytes a parameter")

# %% [markdown] tags=["en"]
"""
The sums are not a matter of taste: programs that people use really keep that many bytes.

- **8** (2 + 2 + 2 + 2): plain PyTorch on a bfloat16 model, which is what `Trainer` runs on a model loaded in bfloat16. Cheapest, and weakest: a bfloat16 has 8 significant bits, so small updates are rounded away.
- **12** (2 + 2 + 4 + 4): moments in float32. The QLoRA paper counts so (65B: "more than 780 GB"), and so does the lecture.
- **16** (4 + 4 + 4 + 4): everything in float32. Mixed precision with a float32 master copy comes to the same 16 (2 + 2 + 4 + 4 + 4; ZeRO paper, section 3).

Now the same model under the three. Look at which of the 8B rows are below the 85.9 GB of an 80 GiB card.
"""

# %% [markdown] tags=["zh", "of-2b44d8a8"]
"""
这不是口味问题：大家在用的程序真的各自保存了这么多字节。

- **8**（2 + 2 + 2 + 2）：普通 PyTorch 训练 bfloat16 模型；用 bfloat16 加载模型再交给 `Trainer`，跑的就是它。最省，也最弱：bfloat16 只有 8 位有效二进制数字，太小的更新会被舍入掉。
- **12**（2 + 2 + 4 + 4）：动量和方差用 fp32。QLoRA 论文这样算（65B 模型“超过 780 GB”），讲义也这样算。
- **16**（4 + 4 + 4 + 4）：全部用 fp32。混合精度训练再加一份 fp32 主权重也是 16（2 + 2 + 4 + 4 + 4，见 ZeRO 论文第 3 节）。

再看同一个模型在三种口径下的大小。80 GiB 的卡有 85.9 GB，请看 8B 的哪几行放得下。
"""

# %%
card_bytes = 80 * 2**30
print(f"an 80 GiB card holds {card_bytes / 1e9:.1f} GB")
for shape in (small, large):
    for each in (8, 12, 16):
        total = each * shape.n_params
        fits = "fits" if total < card_bytes else "does not fit"
        print(f"{shape.name:11} {each:3} B: {total / 1e9:6.1f} GB = {total / 2**30:6.1f} GiB {fits}")

# %% [markdown] tags=["en"]
"""
The lecture's 16 + 16 + 64 GB are the 12-byte row: 98.3 GB. From that row it follows that one A100-80G is too small; from the 8-byte row, 65.5 GB, it does not. "8B cannot be fully fine-tuned on one 80 GB card" is a statement about a convention. Note also the units: 91.5 GiB and 98.3 GB are the same bytes, and a card sold as 80 GB holds 80 GiB. Mixing them up costs 7 %, enough to turn a fit into an out-of-memory error.

## 3. Activations: the bill of one decoder layer

The backward pass needs values from the forward pass, and autograd keeps them alive. Which ones? An operation keeps an input only if some gradient needs it. Line by line for one layer in full fine-tuning, in bytes per token: 2 for a bfloat16, 4 for a float32. Expect the MLP to be the largest item; look at the total.
"""

# %% [markdown] tags=["zh", "of-f9618dc0"]
"""
讲义的 16 + 16 + 64 GB 就是 12 字节那一行：98.3 GB。按这一行，一张 A100-80G 的确不够；但按 8 字节那一行的 65.5 GB，就得不出这个结论。“8B 模型不可能在一张 80 GB 的卡上做全参数微调”，说的其实是某一种口径。还要注意单位：91.5 GiB 和 98.3 GB 是同样的字节数，而标称 80 GB 的卡实际有 80 GiB。混用单位会差 7%，足以让“放得下”变成显存溢出（OOM）。

## 3. 激活值：一个解码层的账单

反向传播要用到前向传播的中间值，autograd 会一直保留它们。保留哪些？一个运算只有在某个梯度用得到某个输入时，才会保留这个输入。下面逐项列出全参数微调时一层的账单，单位是每个词元的字节数：bfloat16 占 2 字节，fp32 占 4 字节。预期 MLP 是最大的一项，请看总数。
"""

# %%
h, q, k, i = small.hidden_size, small.q_size, small.kv_size, small.intermediate_size
bill = {
    "2 RMSNorms: float32 copy of the input": 2 * 4 * h,
    "2 RMSNorms: normalized input": 2 * 2 * h,
    "2 RMSNorms: output, the linears' input": 2 * 2 * h,
    "q_norm, k_norm: float32 copy, normalized": (4 + 2) * (q + k),
    "all norms: 1 / root mean square, float32": 4 * (2 + small.n_heads + small.n_kv_heads),
    "rotated q, rotated k, v": 2 * (q + k + k),
    "attention output, log-sum-exp in float32": 2 * q + 4 * small.n_heads,
    "gate, up, silu(gate), their product": 4 * 2 * i,
}
for line, size_bytes in bill.items():
    print(f"{line:42} {size_bytes:8,} {size_bytes / sum(bill.values()):6.1%}")
print(f"{'bytes per token and layer':42} {sum(bill.values()):8,}")

# %% [markdown] tags=["en"]
"""
`labkit` has the same bill as a function. The two must agree exactly; then multiply by layers and tokens. Look at the last number: at 2,048 tokens the activations of the 1.7B model are nearly twice its 3.44 GB of weights.
"""

# %% [markdown] tags=["zh", "of-525d6a6e"]
"""
`labkit` 里有同样的账单函数，两者必须完全一致；然后乘以层数和词元数。请看最后一个数：2,048 个词元时，1.7B 模型的激活值几乎是 3.44 GB 权重的两倍。
"""

# %%
from labkit import Method, Step
from labkit.theory.activations import layer_bytes, saved_bytes

full, step = Method(kind="full"), Step(batch=1, seq_len=2048, checkpointing=False)
assert sum(bill.values()) * step.tokens == layer_bytes(small, full, step, trains=True, adapted=False)
print(f"{small.n_layers} layers x {step.tokens} tokens: {saved_bytes(small, full, step) / 1e9:.2f} GB")

# %% [markdown] tags=["en"]
"""
A bill on paper is a claim. PyTorch lets you watch every tensor that autograd saves: `saved_tensors_hooks`. The function below counts each storage once and leaves out the model's own weights. Watch the difference that *one more layer* makes in the tiny model, and compare it with the formula.
"""

# %% [markdown] tags=["zh", "of-8a7906da"]
"""
写在纸上的账单只是一种说法。PyTorch 的 `saved_tensors_hooks` 能让你看到 autograd 保存的每一个张量。下面的函数对每块存储只数一次，并排除模型自己的权重。请看小模型*每多一层*多出多少字节，再和公式比较。
"""

# %%
from dataclasses import replace


def count_saved_bytes(model, **options):
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=ids, **options)
    del output  # only now may autograd let go of them
    return sum(sizes.values())


shapes = [replace(tiny, n_layers=n) for n in (1, 2, 3)]
counted = [count_saved_bytes(random_model(shape)) for shape in shapes]
lab = Step(batch=2, seq_len=128, checkpointing=False)
predicted = layer_bytes(tiny, full, lab, trains=True, adapted=False)
assert counted[2] - counted[1] == counted[1] - counted[0] == predicted
print(counted, f"one more layer: {counted[2] - counted[1]:,} counted, {predicted:,} predicted")

# %% [markdown] tags=["en"]
"""
Predicted and counted agree to the byte. **Gradient checkpointing** throws nearly all of this away: each layer keeps only its input (2*h* bytes per token) and runs forward a second time when its gradients are due. Expect the count to fall to that input; look at the ratio.
"""

# %% [markdown] tags=["zh", "of-a417d737"]
"""
预测与实数一个字节都不差。**梯度检查点**把其中绝大部分扔掉：每层只留下自己的输入（每个词元 2*h* 字节），等到要算它的梯度时再前向算一遍。预期每层只剩这个输入，请看比值。
"""

# %%
from labkit.training.ledger import checkpointed

counted = [count_saved_bytes(checkpointed(random_model(shape)), use_cache=False) for shape in shapes]
kept = counted[2] - counted[1]
assert kept == 2 * tiny.hidden_size * lab.tokens
print(f"one more layer: {kept:,} bytes instead of {predicted:,}, {predicted / kept:.0f} times less")

# %% [markdown] tags=["en"]
"""
And what does it cost? A training step is one forward pass and a backward pass of about twice its work; a second forward pass makes 4 units of 3, so on a GPU that is busy with arithmetic the ratio is about 1.33. Expect something near that here, give or take: a model this small spends much of its time on bookkeeping between the operations.
"""

# %% [markdown] tags=["zh", "of-7e2ac1b5"]
"""
代价是什么？一步训练包含一次前向和工作量约为前向两倍的反向；多算一次前向，3 份工作变成 4 份，所以在忙于运算的 GPU 上，时间比约为 1.33。这里的结果会在它附近，有些出入：模型这么小，不少时间花在运算之间的调度上。
"""

# %%
from labkit.training.ledger import step_seconds

plain_s = step_seconds(random_model(tiny, dtype="float32"), ids)
checkpointed_s = step_seconds(checkpointed(random_model(tiny, dtype="float32")), ids)
ratio = checkpointed_s / plain_s
print(f"plain {1e3 * plain_s:.0f} ms, checkpointed {1e3 * checkpointed_s:.0f} ms, ratio {ratio:.2f}")

# %% [markdown] tags=["en"]
"""
*"And the KV cache?"* There is none to pay for. A cache spares a generating model from computing old keys and values again; in training all positions are computed at once, and their keys and values are in the bill already. Even with `use_cache=True` left on, the count does not move by a byte.
"""

# %% [markdown] tags=["zh", "of-a49ed13b"]
"""
*“那 KV 缓存呢？”* 训练时没有这笔开销。缓存是为了让模型在生成时不必重算旧的 K 和 V；训练时所有位置一次算完，K 和 V 本来就在账单里。就算忘了关 `use_cache=True`，数出来的字节也一个不变。
"""

# %%
counts = [count_saved_bytes(random_model(tiny), use_cache=flag) for flag in (True, False)]
assert counts[0] == counts[1]
print(f"use_cache=True: {counts[0]:,} bytes; use_cache=False: {counts[1]:,} bytes")

# %% [markdown] tags=["en"]
"""
## 4. The part nobody counts: logits

The last layer scores every token of the vocabulary at every position: *N* × *V* numbers for *N* tokens, and *V* is 151,936. To see the *peak*, saved tensors are not enough; temporaries count too. So this book has a *ledger*: PyTorch shows it every operation, it books each new tensor and strikes out each one that is released. Expect a temporary of 4 MB that no variable ever held; look at the peak.
"""

# %% [markdown] tags=["zh", "of-95277204"]
"""
## 4. 没人去数的部分：logits

最后一层要在每个位置给词表里的每个词元打分：*N* 个词元就是 *N* × *V* 个数，而 *V* 是 151,936。要看*峰值*，只数保存下来的张量不够，临时张量也要算。本书为此写了一个*账本*（`Ledger`）：PyTorch 把每个运算都给它过目，新张量一出现就记账，一释放就销账。下面的例子里有一个 4 MB 的临时张量，没有任何变量保存过它，但账上有。请看峰值。
"""

# %%
from labkit.training.ledger import Ledger

with Ledger() as ledger:
    first = torch.zeros(1000, 1000)  # float32: 4 MB
    second = first * 2 + 1  # the product is a temporary
    del first
print([size_bytes // 10**6 for size_bytes in ledger.curve], "MB; peak", ledger.peak_bytes // 10**6, "MB")

# %% [markdown] tags=["en"]
"""
Now the loss as transformers computes it, with the real vocabulary and only 48 tokens: logits in bfloat16, a float32 copy, cross-entropy. Look at bytes per token and vocabulary entry: 12 at the peak, and 14 if the caller keeps the logits in a variable.
"""

# %% [markdown] tags=["zh", "of-0e337813"]
"""
现在按 transformers 的方式计算损失：用真实的词表，但只取 48 个词元；先是 bfloat16 的 logits，再转成 fp32，最后算交叉熵（cross-entropy）。请看“每个词元、每个词表项”的字节数：峰值是 12；如果调用者把 logits 留在变量里，就是 14。
"""

# %%
from torch.nn.functional import cross_entropy

from labkit.training.ledger import peak_bytes

V, n_tokens = small.vocab_size, 48
hidden = torch.randn(n_tokens, 64, dtype=torch.bfloat16, requires_grad=True)  # (N, h), h = 64
head = torch.randn(V, 64, dtype=torch.bfloat16)  # (V, h), frozen
labels = torch.randint(0, V, (n_tokens,))
resident = [hidden, head, labels]


def full_loss():
    return cross_entropy((hidden @ head.T).float(), labels)


def full_loss_kept():
    full_loss_kept.logits = hidden @ head.T  # as when you write: out = model(...)
    return cross_entropy(full_loss_kept.logits.float(), labels)


for loss in (full_loss, full_loss_kept):
    hidden.grad = None
    peak = peak_bytes(lambda loss=loss: loss().backward(), resident=resident)
    print(f"{loss.__name__:15} {peak / 1e6:6.1f} MB: {peak / n_tokens / V:.2f} bytes per token and entry")

# %% [markdown] tags=["en"]
"""
Where the 12 come from, all float32 and all at the same moment of the backward pass: the log-softmax (4), the gradient that enters it (4), the gradient that leaves it (4). A guess: at how many tokens do 12 × *N* × *V* bytes outgrow *all the weights* of Qwen3-1.7B in bfloat16?
"""

# %% [markdown] tags=["zh", "of-b22b83c1"]
"""
这 12 字节从何而来？反向传播的某一刻，三份 fp32 同时存在：log-softmax 的输出（4）、传进来的梯度（4）、传出去的梯度（4）。猜一猜：词元数达到多少时，12 × *N* × *V* 字节会超过 Qwen3-1.7B *全部权重*（bfloat16）？
"""

# %%
labkit.predict("p1_3", ..., unit="tokens")

# %%
labkit.reveal("p1_3", 2 * small.n_params / (12 * V))
for tokens in (512, 2048, 8192):
    print(f"{tokens:5} tokens: logits {12 * V * tokens / 1e9:6.2f} GB, weights {2 * small.n_params / 1e9:.2f} GB")

# %% [markdown] tags=["en"]
"""
"Batch size 1 costs nothing" is the wrong idea here: one sequence of 2,048 tokens already needs more for its logits than for its weights. What counts is tokens, not sequences, and checkpointing does not help, because the logits are not inside a layer.

The way out: nobody needs all logits at once. Compute the loss 16 tokens at a time, checkpointed, and throw each piece away. Expect the same loss and a peak of 16 tokens, however many there are in all.
"""

# %% [markdown] tags=["zh", "of-7c924f15"]
"""
“批大小为 1 就不占显存”是错的：一条 2,048 个词元的序列，logits 占的就比权重还多。决定开销的是词元数，不是序列条数；梯度检查点也帮不上忙，因为 logits 不在任何一层里。

出路是：没有谁需要同时看到全部 logits。每次只算 16 个词元的损失，配合检查点，用完就扔。预期损失不变，而峰值只相当于 16 个词元，与总数无关。
"""

# %%
from torch.utils.checkpoint import checkpoint


def piece(x, y):
    return cross_entropy((x @ head.T).float(), y, reduction="sum")


def chunked_loss():
    pieces = zip(hidden.split(16), labels.split(16), strict=True)
    return sum(checkpoint(piece, x, y, use_reentrant=False) for x, y in pieces) / n_tokens


assert torch.allclose(full_loss(), chunked_loss())
hidden.grad = None
peak = peak_bytes(lambda: chunked_loss().backward(), resident=resident)
print(f"{peak / 1e6:.1f} MB = 12 bytes x {peak / 12 / V:.1f} tokens x V")

# %% [markdown] tags=["en"]
"""
Libraries go further and fuse the head, the loss and its gradient, a tile at a time; TRL's `SFTTrainer` does so by default since 1.15. `labkit` predicts the step for each of the three. Look at the difference between the first row and the last, for the price of nothing but a different loss function.
"""

# %% [markdown] tags=["zh", "of-be24b729"]
"""
各种库更进一步，把输出层、损失和梯度融合（fused）成一个算子，一块一块地算；TRL 的 `SFTTrainer` 从 1.15 版起默认就这样做。`labkit` 可以分别预测三种做法。请看第一行和最后一行的差距：只换了一个损失函数而已。
"""

# %%
from labkit.theory.memory import predict

lora = Method(kind="lora", rank=32)
for loss in ("full", "chunked", "fused"):
    prediction = predict(small, lora, Step(batch=1, seq_len=2048, loss=loss))
    print(f"{small.name} LoRA, loss={loss:8} peak {prediction.peak_allocated_bytes / 1e9:5.2f} GB")

# %% [markdown] tags=["en"]
"""
## 5. What LoRA removes, what it adds, and what QLoRA shrinks

LoRA freezes the base and trains two thin matrices beside each linear layer: *A* (*r* × in) and *B* (out × *r*), so *r* × (in + out) parameters. The lecture says "about 40M" for Qwen3-8B with *r* = 32 on all linears. Count, then let PEFT count on the real architecture (on `meta`); look at which rank 40M belongs to.
"""

# %% [markdown] tags=["zh", "of-a40b3b01"]
"""
## 5. LoRA 去掉了什么、增加了什么，QLoRA 又缩小了什么

LoRA 冻结基座，在每个线性层旁边训练两个细长的矩阵：*A*（*r* × 输入维）和 *B*（输出维 × *r*），也就是 *r* ×（输入维 + 输出维）个参数。讲义说 Qwen3-8B、*r* = 32、所有线性层“约 40M”。先自己数，再让 PEFT 在真实结构上（`meta` 设备）数一遍；请看 40M 对应的是哪个秩（rank）。
"""

# %%
from labkit.training.ledger import add_adapters


def adapter_params(shape, rank):
    return rank * shape.n_layers * sum(d_in + d_out for d_in, d_out in shape.linears().values())


for rank in (16, 32):
    n = adapter_params(large, rank)
    print(f"rank {rank}: {n:,} = {n / large.n_params:.2%} of the model,", end=" ")
    print(f"{4 * n / 1e6:.0f} MB in float32, AdamW {8 * n / 1e6:.0f} MB")
model = add_adapters(random_model(large, device="meta"), lora)
trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
assert trainable == adapter_params(large, 32)
print(f"PEFT: {trainable:,} parameters train")

# %% [markdown] tags=["en"]
"""
87,293,952, not 40M: that would be rank 16. PEFT keeps adapters in float32, so they take 349 MB, and as much again for their gradients, and 698 MB for AdamW. Still small change beside 16.38 GB of frozen weights. "The optimizer always dominates" is true of full fine-tuning only.

So gradients and states are gone. Are activations gone as well? The base is frozen, after all. Count what one more layer saves, full against LoRA, and look at the ratio.
"""

# %% [markdown] tags=["zh", "of-658ea3f4"]
"""
是 87,293,952，不是 40M；40M 是秩为 16 的情况。PEFT 的适配器（adapter）用 fp32，权重占 349 MB，梯度同样多，AdamW 再占 698 MB。和 16.38 GB 的冻结权重相比，这些都是零头。“优化器永远占大头”只对全参数微调成立。

梯度和优化器状态没有了。基座都冻结了，激活值是不是也没有了？数一数每多一层要保存多少，全参数和 LoRA 对比，请看比值。
"""

# %%
for adapter_dtype in ("float32", "bfloat16"):
    method = Method(kind="lora", rank=8, dropout=0.0, adapter_dtype=adapter_dtype)
    counted = [count_saved_bytes(add_adapters(random_model(shape), method)) for shape in shapes]
    more = counted[2] - counted[1]
    assert more == layer_bytes(tiny, method, lab, trains=False, adapted=True)
    print(f"{adapter_dtype:8} adapters: {more:,} bytes a layer, {more / predicted:.2f} times full ({predicted:,})")

# %% [markdown] tags=["en"]
"""
LoRA with PEFT's defaults saves *more* than full fine-tuning. To get the gradient of *A*, autograd must keep the input of *A*; and because *A* is float32, PEFT makes a float32 copy of that input, one for every adapted layer: q, k and v do not share theirs. On top, the gradient still flows through every frozen layer, so norms, attention and the MLP's nonlinearity keep what they kept. With bfloat16 adapters the copies go, and LoRA saves a little. The same for the real model:
"""

# %% [markdown] tags=["zh", "of-b2f463d8"]
"""
按 PEFT 的默认设置，LoRA 保存的比全参数微调*还多*。要算 *A* 的梯度，autograd 必须留住 *A* 的输入；而 *A* 是 fp32，PEFT 会把这个输入转成 fp32 再存一份，每个挂了适配器的层各存一份，q、k、v 也不共用。此外，梯度仍然要穿过每一个冻结的层，所以归一化、注意力和 MLP 的非线性该留的照样要留。改用 bfloat16 适配器，这些副本就没有了，LoRA 才会略省一点。真实模型上的数字如下：
"""

# %%
reference = layer_bytes(small, full, step, trains=True, adapted=False)
for adapter_dtype in ("float32", "autocast", "bfloat16"):
    method = Method(kind="lora", rank=16, dropout=0.0, adapter_dtype=adapter_dtype)
    more = layer_bytes(small, method, step, trains=False, adapted=True)
    each = more // step.tokens
    print(f"{small.name}, {adapter_dtype:8} adapters: {each:,} bytes a token and layer, {more / reference:.2f} times full")

# %% [markdown] tags=["en"]
"""
About a third more. **QLoRA** leaves all of that as it is and shrinks what is frozen: the weights of the linears go from 16 to about 4 bits. How many exactly? Quantize a real matrix with bitsandbytes and count what it stores. Look for 4.5 bits, and 4.127 with double quantization (lesson 03 opens the box).
"""

# %% [markdown] tags=["zh", "of-824a82ab"]
"""
大约多三分之一。**QLoRA** 对这些都不动，它缩小的是冻结的部分：线性层的权重从 16 比特降到 4 比特左右。到底是多少？用 bitsandbytes 量化（quantization）一个真实的矩阵，数一数它存了什么。请找到 4.5 比特，以及双重量化（double quantization）之后的 4.127 比特（第 03 节会打开这个盒子）。
"""

# %%
from bitsandbytes.functional import quantize_4bit

weight = torch.randn(large.hidden_size, large.hidden_size)  # the shape of q_proj in Qwen3-8B
for double in (False, True):
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    constants = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    print(f"double_quant={double!s:5} {8 * (packed.nbytes + constants) / weight.numel():.3f} bits a weight")

# %% [markdown] tags=["en"]
"""
"QLoRA makes it a quarter", or "halves it": neither. Only the linears of the decoder layers are quantized; embeddings, LM head and norms stay in 16 bits. Look at the 8B model: 6.07 GB, not the lecture's 5 (5,048 MB is the QLoRA paper's figure for LLaMA-7B, which has a vocabulary of 32,000). `prepare_model_for_kbit_training` then raises the 16-bit rest to float32: on the 8B model 2.49 GB, or 2.3 GiB, of the saving are gone again. TRL 1.16 does not call it.
"""

# %% [markdown] tags=["zh", "of-077aa1fb"]
"""
“QLoRA 降到四分之一”“再减半”，都不对。只有解码层里的线性层被量化；嵌入层、lm_head 和归一化层仍是 16 比特。请看 8B 模型：6.07 GB，不是讲义的 5 GB（5,048 MB 是 QLoRA 论文里 LLaMA-7B 的数字，它的词表只有 32,000）。调用 `prepare_model_for_kbit_training` 之后，剩下的 16 比特部分会升成 fp32：在 8B 上又吐回去 2.49 GB，也就是 2.3 GiB。TRL 1.16 不调用它。
"""

# %%
qlora = Method(kind="qlora", rank=32)
for shape in (small, large):
    rest = 2 * (shape.n_params - shape.linear_params())  # embeddings, head and norms in bfloat16
    for method in (qlora, replace(qlora, kbit_prepare=True)):
        parts = predict(shape, method, step).components
        stored = parts["parameters"] + parts["quantization_constants"]
        label = f"{shape.name} {2 * shape.n_params / 1e9:5.2f} GB in bf16"
        note = " after k-bit preparation" if method.kbit_prepare else f", of it 16-bit {rest / 1e9:.2f} GB"
        print(f"{label} -> {stored / 1e9:.2f} GB{note}")

# %% [markdown] tags=["en"]
"""
## 6. The dry run: a whole step of the real model, without its weights

A peak is a moment, and a sum of terms shows no moments. The ledger does, and it does not care whether tensors hold numbers. So transformers builds the model on `meta`, PEFT adds the adapters, and then forward pass, backward pass and update really run, only without arithmetic. That is a *dry run* (`labkit dryrun`): not a formula, but what the installed libraries would allocate.

Can it be trusted? Try it where the truth is at hand: the tiny model, once on `meta` and once trained for real on the CPU (its second step: optimizer states exist only from then on). Expect almost the same bytes; look at the last column. The closed form contains no fitted constant either.
"""

# %% [markdown] tags=["zh", "of-3a7ed47e"]
"""
## 6. 空跑：不用权重，也能走完真实模型的一整步

峰值是某一个时刻，而一个总和里看不出时刻。账本看得出，而且它不在乎张量里有没有数。于是让 transformers 在 `meta` 上搭好模型，PEFT 挂上适配器，然后前向、反向、更新都真的执行一遍，只是不做算术。这就叫*空跑*（dry run，命令是 `labkit dryrun`）：它不是公式，而是已安装的这些库真的会申请的显存。

可信吗？找一个能知道真相的地方试试：把小模型在 `meta` 上空跑一次，再在 CPU 上真的训练一次（看第二步：从这时起优化器状态才存在）。预期字节数几乎一样，请看最后一列。闭式公式里同样没有任何拟合出来的常数。
"""

# %%
from labkit.training.dryrun import trace, trace_step
from labkit.training.ledger import record_step

tiny_lora = Method(kind="lora", rank=8, dropout=0.0)
print("tiny model: peak in MiB     closed form   dry run   real step   dry run / real")
for method in (full, tiny_lora):
    for on in (False, True):
        model = random_model(tiny) if method is full else add_adapters(random_model(tiny), method)
        at = replace(lab, checkpointing=on, loss="full")
        sizes = [way(tiny, method, at).peak_allocated_bytes for way in (predict, trace)]
        sizes.append(record_step(checkpointed(model) if on else model, ids).peak_bytes)
        label = f"{method.kind}{', checkpointed' if on else ''}"
        print(f"{label:24}", *(f"{size / 2**20:11.2f}" for size in sizes), f"{sizes[1] / sizes[2]:14.4f}")

# %% [markdown] tags=["en"]
"""
The few KiB between them are the labels and the mask that come with a real batch. Now Qwen3-1.7B itself, one sequence of 2,048 tokens. LoRA without checkpointing and with the full loss peaks at 15.0 GiB. Before you trace it: what will be left of that with checkpointing *and* the fused loss?
"""

# %% [markdown] tags=["zh", "of-06a852d1"]
"""
差的那几 KiB 是真实批次里的标签和掩码。现在轮到 Qwen3-1.7B 本身：一条 2,048 个词元的序列。LoRA 不用检查点、用完整损失时，峰值是 15.0 GiB。空跑之前先猜：*同时*打开检查点和融合损失，还剩多少？
"""

# %%
labkit.predict("p1_4", ..., unit="GiB")  # LoRA with checkpointing and the fused loss

# %% [markdown] tags=["en"]
"""
Four settings, four dry runs; each takes a few seconds, because Python runs every operation of 28 layers. Nothing is printed; the picture comes next.
"""

# %% [markdown] tags=["zh", "of-365b942b"]
"""
四种设置，空跑四次；每次要几秒，因为 28 层的每个运算 Python 都要执行一遍。这里不打印任何东西，图在后面。
"""

# %%
lora16 = Method(kind="lora", rank=16, dropout=0.0)
plain = Step(seq_len=2048, loss="full", checkpointing=False)
settings = {
    "full": (full, plain),
    "LoRA": (lora16, plain),
    "LoRA, checkpointed": (lora16, replace(plain, checkpointing=True)),
    "LoRA, checkpointed, fused loss": (lora16, Step(seq_len=2048)),
}
steps = {label: trace_step(small, *setting) for label, setting in settings.items()}

# %% [markdown] tags=["en"]
"""
Each panel is one step, from the loaded model to the update; the bar under the triangle repeats what is there at the peak. Look for a hill that falls as the layers are walked back, a spike of logits on its top, and which hill is the higher one: full fine-tuning or LoRA?
"""

# %% [markdown] tags=["zh", "of-5defaff5"]
"""
每个小图是一步训练，从加载好的模型到参数更新；三角下面的竖条把峰值那一刻的组成再画一遍。请找出：随着反向逐层走回去而下降的那座山、山顶上 logits 的尖峰，再看全参数微调和 LoRA 哪座山更高？
"""

# %%
from labkit.page.timeline_figures import component_timelines, describe_timelines

lines = {label: traced.timeline.sampled() for label, traced in steps.items()}
labkit.show(component_timelines(lines), alt=describe_timelines(lines))
labkit.reveal("p1_4", steps["LoRA, checkpointed, fused loss"].dry_run.peak_allocated_bytes / 2**30)

# %% [markdown] tags=["en"]
"""
The same hill in numbers: what is held when the backward pass begins, in GiB and in bytes per token and layer (a little above the bill of section 3, because the final norm and the embedding's output are in it). Look at the first two rows, then at what checkpointing and the fused loss each take away.
"""

# %% [markdown] tags=["zh", "of-b82826c9"]
"""
同一座山的数字：反向传播开始那一刻手里拿着什么，以 GiB 计，以及每个词元每层的字节数（比第 3 部分的账单略多，因为还包括最后的归一化层和嵌入层的输出）。先看前两行，再看检查点和融合损失各拿走了什么。
"""

# %%
print(f"{'':31} activations   bytes a token   peak, GiB   of it logits")
for label, traced in steps.items():
    held = traced.timeline.at(traced.timeline.starts["backward"])["activations"]
    each, found = held / small.n_layers / plain.tokens, traced.dry_run
    sizes = f"{held / 2**30:11.2f} {each:15,.0f} {found.peak_allocated_bytes / 2**30:11.2f}"
    print(f"{label:31} {sizes} {found.components['logits'] / 2**30:14.2f}")

# %% [markdown] tags=["en"]
"""
- **LoRA's hill is a third higher.** Full fine-tuning keeps each linear's input once, in 16 bits, and q, k and v share theirs. LoRA has no use for it, but the gradient of *A* needs the adapter's own input, a float32 copy for each of seven linears. Everything else that the gradient passes on its way down stays. LoRA's peak is lower all the same, because gradients and optimizer states are gone: it saves what stands *under* the hill.
- **Checkpointing** removes the hill and not the spike; teeth remain, one for each layer that is computed again.
- **The fused loss** removes the spike. Only together do they leave 4.0 GiB, of which 3.2 are frozen weights.

In the first panel, the grey band is the LM head's gradient: the matrix is tied to the embedding, and waits until the embedding's gradient arrives at the very end.

**Three peaks.** So a peak can be at the loss. It can also be in the backward pass, or in the optimizer: two more dry runs of full fine-tuning, which differ in one word. Look at the operation that makes the peak, and the shape that it allocates.
"""

# %% [markdown] tags=["zh", "of-3686c01a"]
"""
- **LoRA 的山要高出三分之一。** 全参数微调对每个线性层的输入只保留一份 16 位的，q、k、v 还共用一份。LoRA 用不着它，但算 *A* 的梯度要用到适配器自己的输入：七个线性层各留一份 fp32 副本。梯度一路往下要经过的其他东西，一样也不少。LoRA 的峰值仍然更低，是因为梯度和优化器状态没有了：它省下的是山*脚下*的那部分。
- **检查点**去掉的是山，不是尖峰；剩下的是锯齿，每重算一层就有一个齿。
- **融合损失**去掉的是尖峰。两样一起用，才只剩 4.0 GiB，其中 3.2 GiB 是冻结的权重。

第一个小图里灰色的那条带子是 lm_head 的梯度：它和嵌入层共用一个矩阵，要一直等到最后嵌入层的梯度算出来。

**三个峰。** 所以峰值可能在损失处，也可能在反向传播中，还可能在优化器里。再对全参数微调空跑两次，两者只差一个词。请看造成峰值的是哪个运算，以及它申请的形状。
"""

# %%
settings |= {
    "full, checkpointed, fused loss": (full, Step(seq_len=2048)),
    "full, ..., foreach AdamW": (full, Step(seq_len=2048, optimizer="adamw_foreach")),
}
steps |= {label: trace_step(small, *settings[label]) for label in settings if label not in steps}
for label, traced in steps.items():
    found = traced.dry_run
    print(f"{label:31} {found.peak_allocated_bytes / 2**30:5.2f} GiB, {found.peak_phase:9} {found.peak_operation}")

# %%
lines = {label: steps[label].timeline.sampled() for label in list(steps)[-2:]}
labkit.show(component_timelines(lines), alt=describe_timelines(lines))

# %% [markdown] tags=["en"]
"""
1. **The loss** (`_log_softmax_backward_data`): logits that nobody fused, wherever the vocabulary is large.
2. **The backward pass**: with LoRA inside one layer that is computed again; with full fine-tuning at the end, where the gradients have piled up and the embedding's gradient is added to the LM head's.
3. **The optimizer** (`_foreach_sqrt`): PyTorch's own default on CUDA walks through all parameters at once and makes a temporary as large as all of them. `fused` does not.

So there is no "the peak": a setting that lowers one of the three leaves the others. The closed form knows all three, here for the 8B model; the phase of the peak is marked `*`. Look at how it moves, and at the 81.9 GB that a mere default costs.
"""

# %% [markdown] tags=["zh", "of-b86496c8"]
"""
1. **损失**（`_log_softmax_backward_data`）：没有融合的 logits，只要词表大就会这样。
2. **反向传播**：LoRA 的峰值在某个正在重算的层里；全参数微调的峰值在末尾，这时梯度已经堆满，嵌入层的梯度还要和 lm_head 的相加。
3. **优化器**（`_foreach_sqrt`）：PyTorch 在 CUDA 上的默认实现一次处理所有参数，会产生和全部参数一样大的临时张量；`fused` 则不会。

所以不存在唯一的“那个峰值”：一种设置压低了三个峰中的一个，另外两个还在。闭式公式知道这三个峰，下面用在 8B 模型上；峰值所在的阶段标了 `*`。请看它如何移动，以及一个默认选项就能让峰值涨到 81.9 GB。
"""

# %%
cases = {
    "8B full, fused AdamW": (large, full, Step(seq_len=2048)),
    "8B full, foreach AdamW": (large, full, Step(seq_len=2048, optimizer="adamw_foreach")),
    "8B LoRA, no checkpointing": (large, lora, Step(seq_len=2048, checkpointing=False)),
    "8B LoRA, full loss": (large, lora, Step(seq_len=2048, loss="full")),
    "1.7B QLoRA, full loss": (small, qlora, Step(seq_len=2048, loss="full")),
    "1.7B QLoRA, fused loss": (small, qlora, Step(seq_len=2048)),
}
for label, case in cases.items():
    prediction = predict(*case)
    sizes = [f"{phase} {size / 1e9:5.2f}" for phase, size in prediction.phases.items()]
    print(f"{label:26}", *(f"{size}{'*' if prediction.peak_phase in size else ' '}" for size in sizes))

# %% [markdown] tags=["en"]
"""
"Checkpointing always lowers the peak" fails whenever the peak is not made of activations. Full fine-tuning of the 8B model is governed by weights, gradients and states. Look for the length from which checkpointing begins to pay; below it, you buy slower steps and get nothing.
"""

# %% [markdown] tags=["zh", "of-522fb5f6"]
"""
“梯度检查点总能降低峰值”——只要峰值不是由激活值构成的，这句话就不成立。8B 全参数微调的峰值由权重、梯度和优化器状态决定。请找出从哪个长度开始检查点才有用；在那之前，你换来的只是更慢的训练，什么也没省下。
"""

# %%
for method in (full, lora):
    for seq_len in (256, 1024, 2048, 4096):
        choices = [Step(seq_len=seq_len, checkpointing=on) for on in (False, True)]
        off, on = (predict(large, method, each).peak_allocated_bytes / 1e9 for each in choices)
        print(f"8B {method.kind}, length {seq_len:4}: without {off:5.2f} GB, with {on:5.2f} GB ({off / on:.2f})")

# %% [markdown] tags=["en"]
"""
And k-bit preparation: why 2.3 GiB on the 8B model? Trace it with 2 of its 36 layers, and compare with two matrices whose elements grow from 2 bytes to 4. Expect nearly the same number, so the layers have little to do with it.
"""

# %% [markdown] tags=["zh", "of-50e8656d"]
"""
再看 k-bit 准备：在 8B 上为什么要 2.3 GiB？只留 36 层中的 2 层来空跑，再和两个矩阵比较：它们的每个元素从 2 字节变成 4 字节。预期两个数几乎相同，可见和解码层没有多大关系。
"""

# %%
two_layers, short = replace(large, n_layers=2), Step(seq_len=512)
loaded = [trace(two_layers, replace(qlora, kbit_prepare=on), short).phases["load"] for on in (False, True)]
doubled = 2 * 2 * large.vocab_size * large.hidden_size  # two matrices, 2 bytes more for each element
print(f"2 layers: loaded {loaded[0] / 2**30:.2f} GiB, prepared {loaded[1] / 2**30:.2f} GiB", end=", ")
print(f"difference {(loaded[1] - loaded[0]) / 2**30:.3f} GiB; two matrices {doubled / 2**30:.3f} GiB")

# %% [markdown] tags=["en"]
"""
The Qwen3-8B embedding and its LM head are two separate matrices of 151,936 × 4,096, and QLoRA does not quantize them. In float32 they weigh 4.6 GiB instead of 2.3, more than all the quantized layers (3.3 GiB).

**Your own machine.** Estimate, dry run, measurement, ratio: no memory figure should come alone. First the pretrained model of your profile, with the method that it trains with: on a GPU the measurement is `torch.cuda.max_memory_allocated`, on a CPU the ledger measures, and a model too large for a CPU is "not measured here". Below it stands what an operating system shows, the memory of the whole process (RSS): Python, libraries and all. Look how little of that the tiny model explains.
"""

# %% [markdown] tags=["zh", "of-723399de"]
"""
Qwen3-8B 的嵌入层和 lm_head 是两个独立的 151,936 × 4,096 矩阵，QLoRA 不量化它们。变成 fp32 之后，它们从 2.3 GiB 涨到 4.6 GiB，比全部量化过的层（3.3 GiB）还大。

**你自己的机器。** 估计、空跑、实测、比值：显存数字不应该单独出现。先看配置中那个预训练好的模型，用它实际的训练方法：有 GPU 时用 `torch.cuda.max_memory_allocated` 测量；在 CPU 上用账本测量；模型大到 CPU 跑不动时，打印 “not measured here”。再往下是操作系统看到的整个进程的内存（RSS），其中还有 Python 和各种库。请看小模型只能解释其中多小的一部分。
"""

# %%
from labkit.models.profiles import settled_method
from labkit.training.measure import peak_memory
from labkit.training.real_step import measured_peak_bytes

profile = labkit.current_profile()
method, at = settled_method(profile), Step(seq_len=profile.seq_len, loss="full")
guess = predict(shape_of(profile.model), method, at).peak_allocated_bytes
found = measured_peak_bytes(profile, method, seq_len=at.seq_len)
counter = "max_memory_allocated" if torch.cuda.is_available() else "the ledger"
print(f"{profile.model}, {method.kind}, 1 x {at.seq_len} tokens: predicted {guess / 2**20:.2f} MiB, measured", end=" ")
print(f"{found / 2**20:.2f} MiB by {counter}, ratio {guess / found:.3f}" if found else "not measured here")
for name, size_bytes in peak_memory().items():
    print(f"{name}: {size_bytes / 2**20:,.0f} MiB")

# %% [markdown] tags=["en"]
"""
On a GPU one number is not enough: is it loading, the backward pass, the optimizer? The next cell traces the same step and, if there is a GPU, runs it there with random weights and asks CUDA's counters after each phase. `left` is what is measured beyond the dry run, the allocator's whole blocks and cuBLAS's workspaces, with a guess at its cause. Without a GPU the column says "not measured here", as in every table of this book: no GPU was at hand when it was made. Below: what PyTorch would *reserve* (`nvidia-smi` shows that and the CUDA context, not what is allocated).
"""

# %% [markdown] tags=["zh", "of-6047659c"]
"""
在 GPU 上，一个数还不够：峰值在加载、反向还是优化器？下面的单元格空跑同一步；如果有 GPU，再用随机权重在上面真的跑一遍，并在每个阶段之后读 CUDA 的计数器。`left` 是实测减去空跑、减去分配器按整块分配多占的部分、再减去 cuBLAS 工作区之后剩下的，并附上对原因的猜测。没有 GPU 时这一列写着 “not measured here”，全书的表格都是如此：制作本书时手边没有 GPU。最下面是 PyTorch 会*预留*（reserved）多少：`nvidia-smi` 显示的是它加上 CUDA 上下文，而不是已分配的量。
"""

# %%
from labkit.training.comparison import compare

print(*compare(shape_of(profile.model), method, at).lines(), sep="\n")

# %% [markdown] tags=["en"]
"""
## 7. Full, LoRA and QLoRA side by side

Now everything together, at one stated setting: one sequence of 2,048 tokens, checkpointing, fused loss, rank 32 on all linears, fused AdamW. Your two predictions come back first; the first one is compared with the cheapest convention, 8 bytes, and 98 or 131 GB would have been as honest. The bars show what the peak is made of; the dashed lines are cards of 16, 24 and 80 GiB, as far as the axis reaches.
"""

# %% [markdown] tags=["zh", "of-8a3f9eee"]
"""
## 7. 全参数、LoRA、QLoRA 放在一起比

现在把一切放到一起，设置写清楚：一条 2,048 个词元的序列，梯度检查点，融合损失，所有线性层秩 32，fused AdamW。先对一下你开头的两个预测；第一个是和最省的 8 字节口径比，你若猜 98 或 131 GB，同样合理。条形图显示峰值由什么构成，虚线是 16、24 和 80 GiB 的显卡（只画坐标轴范围内的）。
"""

# %%
common = Step(batch=1, seq_len=2048)
predictions = {}
for shape in (small, large):
    predictions[shape] = {f"{shape.name} {m.kind}": predict(shape, m, common) for m in (full, lora, qlora)}
labkit.reveal("p1_1", predictions[large]["qwen3-8b full"].peak_allocated_bytes / 1e9)
labkit.reveal("p1_2", predictions[small]["qwen3-1.7b qlora"].peak_allocated_bytes / 1e9)

# %%
from labkit.page.memory_figures import describe, memory_bars

for bars in predictions.values():
    labkit.show(memory_bars(bars), alt=describe(bars))

# %% [markdown] tags=["en"]
"""
The same as numbers, and under other settings. Read a row from left to right: each column is the *same* model, method, batch and length. Any "X needs Y GB" that does not say which column it means says nothing.
"""

# %% [markdown] tags=["zh", "of-9ab88d94"]
"""
同样的内容写成数字，再换几种设置。请横着读每一行：各列的模型、方法、批大小和长度都*相同*。一句“某某需要多少 GB”，如果不说明是哪一列，就等于什么也没说。
"""

# %%
columns = [replace(common, loss=loss, checkpointing=on) for on in (True, False) for loss in ("fused", "full")]
print(f"{'checkpointing':32}", *(f"{'on' if column.checkpointing else 'off':>8}" for column in columns))
print(f"{'loss':32}", *(f"{column.loss:>8}" for column in columns), "   (peaks in GB)")
for shape in (small, large):
    for method in (full, lora, qlora, replace(qlora, kbit_prepare=True)):
        peaks = [predict(shape, method, column).peak_allocated_bytes / 1e9 for column in columns]
        label = f"{shape.name} {method.kind}{' k-bit prepared' if method.kbit_prepare else ''}"
        print(f"{label:32}", *(f"{peak:8.2f}" for peak in peaks))

# %% [markdown] tags=["en"]
"""
"QLoRA halves everything": on 8B in the first column it more than halves LoRA (18.98 to 8.66 GB); on 1.7B in the last one it saves 12 % (17.39 to 15.30 GB), because activations and logits were never quantized.
"""

# %% [markdown] tags=["zh", "of-8dc74cff"]
"""
“QLoRA 让一切减半”：8B 的第一列确实不止减半（18.98 → 8.66 GB）；但 1.7B 的最后一列只省了 12%（17.39 → 15.30 GB），因为激活值和 logits 从来没有被量化。
"""

# %% [markdown] tags=["en"]
"""
The lecture's own figures, one by one: each is quoted, recomputed with the functions of this lesson, and judged by comparing (`labkit lecture` prints the rows of the whole book). A ✓ agrees with the lecture. Look at the rows that are right in one convention only: such a figure is worth nothing without its setting. And one that no total shows: "the optimizer is the largest part" ends with LoRA, where it takes 4 % and the frozen weights most of the rest.
"""

# %% [markdown] tags=["zh", "of-d0236898"]
"""
讲义里的数字，逐条核对：每条都列出原文、用本节的函数重算的值，以及由比较得出的结论（`labkit lecture` 会列出全书的所有条目）。✓ 表示与讲义相符。请留意那些只“在一种口径下正确”的条目：这样的数字不写明设置就没有意义。还有一条从总数上看不出来：“优化器状态是最大的开销”到了 LoRA 就不成立了，那里它只占 4%，剩下的大半是冻结的权重。
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="01")

# %% [markdown] tags=["en"]
"""
Now move it. The sliders below compute the same formula in your browser, with no kernel and no network. Change one control at a time and look at two things: the peak in the last row of the table, and the phase that it falls into. Where a step does not fit, the page names the cheapest change that makes it fit, and its price. Start by switching gradient checkpointing off: which part grows? Nothing that you set here is kept or checked. What counts is what you type; the line `choice = dict(…)` under the table is ready to be copied.
"""

# %% [markdown] tags=["zh", "of-65c12c65"]
"""
现在动手调一调。下面的滑块在浏览器里用同一个公式计算，不需要内核，也不需要联网。一次只改一个控件，看两样东西：表格最后一行的峰值，以及峰值落在哪个阶段。放不下时，页面会给出代价最小的改法和它的代价。先把梯度检查点关掉：变大的是哪一部分？在这里的设置不会保存，也不会被检查；算数的是你写在代码里的设置，表格下面那行 `choice = dict(…)` 可以直接复制。
"""

# %%
from labkit.page.explorers import memory_explorer

memory_explorer(model="qwen3-8b", kind="qlora", batch=4, seq_len=2048)

# %% [markdown] tags=["en"]
"""
The same as a typed choice: change it, or paste yours, and see what it does to the bar. Beyond the sliders, any field of `Method` and `Step` may be named. "Fits" leaves 1 GiB for the CUDA context, workspaces and gaps that the allocator cannot use: a rule of thumb, not a measurement.
"""

# %% [markdown] tags=["zh", "of-6b4c90b3"]
"""
再用代码写出设置：改一改，或者粘贴你复制的那行，看条形图怎么变。除了滑块上有的，`Method` 和 `Step` 的任何字段都可以写进来。判断“放得下”时，留出 1 GiB 给 CUDA 上下文、工作区和分配器用不上的空隙：这是经验值，不是实测值。
"""

# %%
from labkit.page.memory_figures import predict_choice, verdict

choice = dict(model="qwen3-8b", kind="qlora", rank=32, batch=4, seq_len=2048, checkpointing=True, loss="fused")
card_gib = 16
bars = {"your choice": predict_choice(choice)}
labkit.show(memory_bars(bars, cards_gib=[card_gib]), alt=describe(bars))
print(verdict(bars["your choice"], card_gib))

# %% [markdown] tags=["en"]
"""
## Exercises

**q1_1 (compute).** Write the function: weights, gradients and AdamW moments in bytes, without activations. `kind` is `"full"` (everything in bfloat16, torch's AdamW) or `"lora"` (bfloat16 base, float32 adapters of rank `rank` on all seven linears). `shape.n_params`, `shape.n_layers` and `shape.linears()` are all you need. Step counters do not count. The check uses models that this text does not show.
"""

# %% [markdown] tags=["zh", "of-b7c3cb3b"]
"""
## 练习

**q1_1（计算）** 写一个函数，算出权重、梯度和 AdamW 动量、方差的总字节数，不含激活值。`kind` 是 `"full"`（全部 bfloat16，torch 的 AdamW）或 `"lora"`（bfloat16 基座，七个线性层都挂秩为 `rank` 的 fp32 适配器）。只需要 `shape.n_params`、`shape.n_layers` 和 `shape.linears()`。步数计数器不算。检查用的模型这里没有列出。
"""

# %%
from labkit import check, hint  # noqa: F401


def static_bytes(shape, kind: str, rank: int) -> int:
    """Bytes of weights, gradients and AdamW moments for kind "full" or "lora"."""
    ### BEGIN SOLUTION
    if kind == "full":
        return (2 + 2 + 2 + 2) * shape.n_params
    adapters = rank * shape.n_layers * sum(d_in + d_out for d_in, d_out in shape.linears().values())
    return 2 * shape.n_params + (4 + 4 + 4 + 4) * adapters
    ### END SOLUTION


check("q1_1", static_bytes)

# %% [markdown] tags=["en", "hint-q1_1"]
"""
Section 2 has the bytes of the full case, its first row. Section 5 has the adapters.
---
Full: every parameter takes weight + gradient + two moments, 2 bytes each. LoRA: the base takes its weights and nothing else; an adapter parameter takes the same four things in float32.
---
full: 8 * n_params. lora: 2 * n_params + 16 * rank * n_layers * (sum of in + out over the seven linears).
"""

# %% [markdown] tags=["zh", "hint-q1_1", "of-e20c6a25"]
"""
全参数的字节数看第 2 部分的第一行；适配器看第 5 部分。
---
全参数：每个参数有权重、梯度、动量、方差，各 2 字节。LoRA：基座只有权重；适配器的每个参数也有这四样，但都是 fp32。
---
full：8 * n_params。lora：2 * n_params + 16 * rank * n_layers *（七个线性层的 输入维 + 输出维 之和）。
"""

# %% [markdown] tags=["en"]
"""
**q1_2 (predict, then trace).** Qwen3-4B, QLoRA with rank 16 on all linears, 2 sequences of 1,536 tokens, checkpointing, the full loss of transformers. What is the peak, in GB? Do the arithmetic from the terms of this lesson; within 10 % is right. Useful: its NF4 weights with constants take 2.65 GB. Once you have typed a number, the cell below it runs the dry run, and you see how close you came to what the libraries do.
"""

# %% [markdown] tags=["zh", "of-cff401cd"]
"""
**q1_2（先预测，再空跑）** Qwen3-4B，QLoRA，所有线性层秩 16，2 条长度 1,536 的序列，打开检查点，用 transformers 的完整损失。峰值是多少 GB？请用本节的各项自己算，误差在 10% 以内就算对。已知：它的 NF4 权重连同量化常数共 2.65 GB。填好数字之后，再下面的单元格会空跑一次，看看你离这些库的实际行为有多近。
"""

# %%
peak_gb = ...
### BEGIN SOLUTION
four = shape_of("qwen3-4b")
tokens = 2 * 1536
adapters = 12 * adapter_params(four, 16)  # float32 weights and two moments; no gradients yet at the loss
inputs = 2 * four.hidden_size * four.n_layers * tokens
peak_gb = 2.65 + (adapters + inputs + 12 * four.vocab_size * tokens) / 1e9
### END SOLUTION
check("q1_2", peak_gb)

# %%
if isinstance(peak_gb, int | float):
    asked = Step(batch=2, seq_len=1536, loss="full")
    traced_gb = trace(shape_of("qwen3-4b"), Method(kind="qlora", rank=16), asked).peak_allocated_bytes / 1e9
    print(f"dry run {traced_gb:.2f} GB; yours {peak_gb:.2f} GB, ratio {peak_gb / traced_gb:.3f}")

# %% [markdown] tags=["en", "hint-q1_2"]
"""
Which moment is the peak? Section 4 names it, and section 6 shows it in the row "1.7B QLoRA, full loss".
---
At that moment four things are there: the 4-bit weights; the adapters with their moments (12 bytes each); the input of each layer (2h bytes per token and layer); and 12 bytes per token and vocabulary entry.
---
2.65 + 12 * 33,030,144 / 1e9 + 2 * 2560 * 36 * 3072 / 1e9 + 12 * 151936 * 3072 / 1e9, a bit above 9.
"""

# %% [markdown] tags=["zh", "hint-q1_2", "of-e49e204c"]
"""
峰值在哪一刻？第 4 部分说了，第 6 部分表中 “1.7B QLoRA, full loss” 一行也能看到。
---
那一刻有四样东西：4-bit 权重；适配器及其动量、方差（每个参数 12 字节）；每层的输入（每个词元每层 2h 字节）；每个词元每个词表项 12 字节。
---
2.65 + 12 * 33,030,144 / 1e9 + 2 * 2560 * 36 * 3072 / 1e9 + 12 * 151936 * 3072 / 1e9，比 9 多一点。
"""

# %% [markdown] tags=["en"]
"""
**q1_3 (make it fit).** The recipe below is far too large for a card of 12 GiB. Make it fit, 1 GiB left free as above, with the *fewest* changes. Model, method, rank, targets, batch and length must stay: they change what is learned. Give the changes as a dictionary, e.g. `dict(optimizer="adamw_8bit")`.
"""

# %% [markdown] tags=["zh", "of-f2107b2c"]
"""
**q1_3（让它放得下）** 下面的设置远远放不进 12 GiB 的显卡。请用*最少*的改动让它放得下，同样要留出 1 GiB。模型、方法、秩、目标模块（target modules）、批大小和长度都不许动，因为它们会改变模型学到的东西。把改动写成字典，例如 `dict(optimizer="adamw_8bit")`。
"""

# %%
from labkit.page.questions.q01 import OLD_RECIPE

print(*(f"{key}={value}" for key, value in OLD_RECIPE.items() if key != "targets"), sep=", ")
print(f"peak {predict_choice(OLD_RECIPE).peak_allocated_bytes / 2**30:.2f} GiB")
changes = ...
### BEGIN SOLUTION
changes = dict(checkpointing=True, kbit_prepare=False)
### END SOLUTION
check("q1_3", changes)

# %% [markdown] tags=["en", "hint-q1_3"]
"""
Draw the bar of OLD_RECIPE with memory_bars: what is the longest piece?
---
Activations go with checkpointing. Then look at what the 16-bit rest of a quantized model weighs after k-bit preparation, beside what the logits weigh.
---
Two changes: checkpointing=True, and one of kbit_prepare=False or loss="fused". Only one of the two leaves the 1 GiB.
"""

# %% [markdown] tags=["zh", "hint-q1_3", "of-bb1e9a93"]
"""
用 memory_bars 画出 OLD_RECIPE 的条形图：最长的一段是什么？
---
激活值可以用检查点去掉。然后比一比：k-bit 准备之后，量化模型里没量化的那部分有多大？logits 又有多大？
---
两处改动：checkpointing=True，再加 kbit_prepare=False 或 loss="fused" 之一。只有一个能留出那 1 GiB。
"""

# %% [markdown] tags=["en"]
"""
**q1_4 (explain).** A friend says: "LoRA trains 1 % of the parameters, so it needs 1 % of the activations." Explain in three sentences why that is wrong: what the backward pass needs, where it must go, and what LoRA adds. The check only sees that three sentences are there and calls them *handed in*; a person marks what they say.
"""

# %% [markdown] tags=["zh", "of-dc1607ee"]
"""
**q1_4（解释）** 有同学说：“LoRA 只训练 1% 的参数，所以激活值也只要 1%。”请用三句话解释为什么不对：反向传播需要什么，它必须经过哪里，LoRA 又增加了什么。检查只看有没有三句话，结果是*已提交*；写得对不对由老师批阅。
"""

# %%
explanation = ...
### BEGIN SOLUTION
from labkit.labels import text

explanation = text(
    "To train the adapters of the first layer, the gradient must travel from the loss through every frozen layer above "
    "it. On its way it needs what the norms, the attention and the MLP's nonlinearity kept in the forward pass, frozen "
    "or not; only the inputs of the frozen weights' own gradients can go. LoRA adds something instead: each adapter "
    "keeps its own input, with PEFT's defaults as a float32 copy for every adapted layer.",
    "要训练最底层的适配器，梯度必须从损失出发，穿过上面每一个冻结的层。一路上，归一化、注意力和 MLP 的非线性在前向时留下的"
    "中间值都要用到，与权重是否冻结无关；能省掉的只有冻结权重自身梯度所需的输入。LoRA 反而还有新增：每个适配器都要保留自己的输入，"
    "按 PEFT 的默认设置，每个挂适配器的层都存一份 fp32 副本。",
)
### END SOLUTION
check("q1_4", explanation)

# %% [markdown] tags=["en", "hint-q1_4"]
"""
Section 5, below the count of saved bytes.
---
Three facts: dL/dA needs the input of A; the gradient of a low layer passes through all higher ones; nonlinear operations need their inputs whatever is frozen.
---
Sentence 1: the path of the gradient. Sentence 2: what stays saved along the path although the weights are frozen. Sentence 3: the float32 copy that each adapted layer adds.
"""

# %% [markdown] tags=["zh", "hint-q1_4", "of-41f7ed8e"]
"""
看第 5 部分数完字节之后的那段文字。
---
三个事实：算 dL/dA 需要 A 的输入；底层的梯度要穿过上面所有层；非线性运算不管权重冻结与否都需要自己的输入。
---
第一句：梯度走的路。第二句：权重虽然冻结，沿路仍要保存什么。第三句：每个挂适配器的层多出来的 fp32 副本。
"""

# %% [markdown] tags=["en"]
"""
## Summary

- Weights, gradients and AdamW moments are 8, 12 or 16 bytes a parameter: 65.5, 98.3 or 131 GB for Qwen3-8B. A figure without its convention means little.
- One decoder layer of Qwen3-1.7B keeps 112,808 bytes per token in full fine-tuning; checkpointing keeps 4,096 and pays with a second forward pass, about a third more arithmetic.
- Logits and cross-entropy take 12 bytes per token and vocabulary entry: 3.73 GB at 2,048 tokens. A fused or chunked loss removes them.
- LoRA removes gradients and optimizer states and *adds* activations, 35 % on Qwen3-1.7B with PEFT's defaults. Rank 32 on Qwen3-8B is 87,293,952 parameters.
- A peak is one of three moments: the loss, the backward pass, or the optimizer. A dry run of Qwen3-1.7B with LoRA at 2,048 tokens shows the first: 15.0 GiB, 7.1 with checkpointing, 4.0 with the fused loss as well.
- QLoRA shrinks frozen weights: 3.44 to 1.35 GB on 1.7B, 16.38 to 6.07 GB on 8B; k-bit preparation gives part of it back.
- Say the setting (batch, length, loss, checkpointing, optimizer) and the unit (GB or GiB) with every figure.

**Next:** [02 · LoRA from scratch](02_lora.ipynb)

## References

- Korthikanti et al., *Reducing Activation Recomputation in Large Transformer Models*, 2022, [arXiv:2205.05198](https://arxiv.org/abs/2205.05198): the classic bill of a layer, for GPT.
- Rajbhandari et al., *ZeRO*, 2019, [arXiv:1910.02054](https://arxiv.org/abs/1910.02054), section 3: where 16 bytes a parameter come from.
- Chen et al., *Training Deep Nets with Sublinear Memory Cost*, 2016, [arXiv:1604.06174](https://arxiv.org/abs/1604.06174): gradient checkpointing.
- Dettmers et al., *QLoRA*, 2023, [arXiv:2305.14314](https://arxiv.org/abs/2305.14314), section 2: 780 GB, 5,048 MB, and what checkpointing saves.
- Hu et al., *LoRA*, 2021, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
- PyTorch, [`torch.autograd.graph.saved_tensors_hooks`](https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks).
"""

# %% [markdown] tags=["zh", "of-501b91f4"]
"""
## 小结

- 权重、梯度、AdamW 的动量和方差加起来，每个参数 8、12 或 16 字节：Qwen3-8B 是 65.5、98.3 或 131 GB。不说口径的数字没有多大意义。
- 全参数微调时，Qwen3-1.7B 的一个解码层每个词元保存 112,808 字节；用检查点只留 4,096 字节，代价是多算一次前向，运算量多约三分之一。
- logits 和交叉熵每个词元、每个词表项占 12 字节：2,048 个词元就是 3.73 GB。融合或分块的损失可以省掉它。
- LoRA 去掉了梯度和优化器状态，却*增加*了激活值：按 PEFT 默认设置，Qwen3-1.7B 多 35%。Qwen3-8B 秩 32 是 87,293,952 个参数。
- 峰值出现在三个时刻之一：损失、反向传播或优化器。空跑 Qwen3-1.7B 的 LoRA（2,048 个词元）看到的是第一种：15.0 GiB，加上检查点 7.1 GiB，再加融合损失 4.0 GiB。
- QLoRA 缩小冻结的权重：1.7B 从 3.44 到 1.35 GB，8B 从 16.38 到 6.07 GB；k-bit 准备又会吐回一部分。
- 每个数字都要带上设置（批大小、长度、损失、检查点、优化器）和单位（GB 还是 GiB）。

**下一节：**[02 · 从零实现 LoRA](02_lora.ipynb)

## 参考文献

- Korthikanti 等，*Reducing Activation Recomputation in Large Transformer Models*，2022，[arXiv:2205.05198](https://arxiv.org/abs/2205.05198)：GPT 一层激活值的经典账单。
- Rajbhandari 等，*ZeRO*，2019，[arXiv:1910.02054](https://arxiv.org/abs/1910.02054)，第 3 节：每个参数 16 字节的来历。
- Chen 等，*Training Deep Nets with Sublinear Memory Cost*，2016，[arXiv:1604.06174](https://arxiv.org/abs/1604.06174)：梯度检查点。
- Dettmers 等，*QLoRA*，2023，[arXiv:2305.14314](https://arxiv.org/abs/2305.14314)，第 2 节：780 GB、5,048 MB，以及检查点省了多少。
- Hu 等，*LoRA*，2021，[arXiv:2106.09685](https://arxiv.org/abs/2106.09685)。
- PyTorch，[`torch.autograd.graph.saved_tensors_hooks`](https://docs.pytorch.org/docs/stable/autograd.html#torch.autograd.graph.saved_tensors_hooks)。
"""

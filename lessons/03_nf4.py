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
# 03 · Four bits that look like a normal distribution

*How many bits does a weight take in NF4 with double quantization? And what share of Qwen3-8B's parameters is quantized at all?*

| | |
|---|---|
| Time | 60 to 75 minutes to read and do; the cells take under a minute on the `tiny` profile |
| Needs | lesson 00; lesson 01 helps with section 11 |
| GPU memory | none on `tiny` and `laptop`; on `gpu` about 6 GiB by calculation: in section 9 the 16-bit model stands beside its rounded copy |

**You will be able to**

1. quantize a block of weights to NF4 by hand, pack it, and prove that bitsandbytes stores the same bytes;
2. say where the 16 levels come from, and why equation 4 of the paper does not give them;
3. count bits per weight exactly, with and without double quantization, and say which parameters stay in 16 bits;
4. compare 4-bit codes by weight error, layer error and held-out loss, and explain why the three can disagree;
5. judge four common claims: NF4 is optimal, the model computes in 4 bits, 4 bits is a quarter of the memory, fine-tuning repairs the error for free.
"""

# %% [markdown] tags=["zh", "of-fe3451fa"]
"""
# 03 · 看起来像正态分布的四个比特

*用 NF4 加双重量化，一个权重占多少比特？Qwen3-8B 的参数里，又有多大比例真的被量化了？*

| | |
|---|---|
| 时间 | 读完做完约 60–75 分钟；`tiny` 配置下所有单元格加起来不到一分钟 |
| 需要 | 第 00 节；学过第 01 节，第 11 部分会更轻松 |
| 显存 | `tiny` 和 `laptop` 不用；`gpu` 约需 6 GiB（算出来的）：第 9 部分里，16 位的模型和它舍入后的副本要同时放下 |

**学完之后，你能够**

1. 亲手把一块权重量化成 NF4 并打包，证明 bitsandbytes 存的是完全相同的字节；
2. 说清 16 个量化级从何而来，以及为什么论文的公式 4 得不到它们；
3. 精确计算每个权重占多少比特（有或没有双重量化），并说出哪些参数仍是 16 比特；
4. 用权重误差、层输出误差和留出集损失比较各种 4 比特编码，并解释三者为什么会不一致；
5. 判断四个常见说法：NF4 是最优的；模型用 4 比特计算；4 比特就是四分之一显存；量化误差可以靠微调白白补回来。
"""

# %% [markdown] tags=["en"]
"""
The lecture says that NF4 takes the quantiles of a normal distribution as levels, that this makes the error "optimal in the information-theoretic sense", and that double quantization saves about 0.4 bit more. This lesson takes the format apart down to the last bit and checks each of these. First three guesses; type a number in place of each `...`.

> **What changes on `laptop` and `gpu`.** No cell changes. The weights are those of the profile's model: the book's own small model, SmolLM2-135M, or Qwen3-1.7B-Base. With `laptop`, sections 9 and 10 take minutes instead of seconds; with `gpu` they run on the GPU, and the comparisons with bitsandbytes still use its CPU code.
"""

# %% [markdown] tags=["zh", "of-06ed26f4"]
"""
讲义说：NF4 用正态分布的分位数作为量化级，因此误差“在信息论意义上最优”；双重量化还能再省约 0.4 比特。本节把这种格式一直拆到最后一个比特，逐条检验这些说法。先猜三个数，写在 `...` 的位置。

> **换成 `laptop` 或 `gpu` 会怎样？** 单元格一个字也不用改。权重来自配置的模型：本书自己的小模型、SmolLM2-135M，或者 Qwen3-1.7B-Base。用 `laptop` 时，第 9、10 部分要几分钟而不是几秒；用 `gpu` 时它们在 GPU 上运行，而与 bitsandbytes 的逐位比较仍然用它的 CPU 代码。
"""

# %%
import labkit

labkit.predict("p3_1", ..., unit="bits a weight")  # NF4 with double quantization, constants included
labkit.predict("p3_2", ..., unit="% of the parameters")  # of Qwen3-8B, quantized by QLoRA
labkit.predict("p3_3", ..., unit="bits of 4")  # entropy of the indices: how evenly NF4 uses its 16 levels

# %% [markdown] tags=["en"]
"""
## 1. Even steps waste themselves on a bell curve

First the pieces of `labkit` that this lesson builds by hand before it uses them. Then load the pretrained model in its full precision and take one weight matrix from the middle. Look at the largest weight in units of the standard deviation: in a normal sample of this size it is between 4 and 6.
"""

# %% [markdown] tags=["zh", "of-1db39909"]
"""
## 1. 等距的量化级浪费在钟形曲线上

先导入 `labkit` 里的部件，本节都会先手工搭一遍再使用。然后用完整精度加载预训练模型，从中间取一个权重矩阵。请看最大的权重是标准差的几倍：这么大的正态样本，应在 4 到 6 之间。
"""

# %%
from dataclasses import replace

import torch
from scipy.stats import shapiro
from torch.special import ndtri

from labkit.labels import text
from labkit.models.places import runs_folder
from labkit.models.profiles import settled_method
from labkit.models.shapes import shape_of
from labkit.models.weights import locate
from labkit.page.code_figures import error_figure, levels_figure, qq_figure, view
from labkit.page.widgets import tensor_widget
from labkit.paths import data_folder
from labkit.theory.codes import CODES, dynamic_map, entropy_bits, equation_4, normal_error, normal_map, normal_usage
from labkit.theory.nf4 import bits_per_weight, dequantize, double_quantize, pack, quantize, relative_error, restore
from labkit.theory.normal_blocks import equal_mass_edges
from labkit.training.evaluate import heldout_loss
from labkit.training.fakequant import answer_logprobs, decoder_linears, divergence, fake_quantized, loss_change
from labkit.training.ledger import Ledger
from labkit.training.loading import load_base, load_tokenizer, quiet
from labkit.training.recipe import build_trainer
from labkit.training.run import rows_of
from labkit.training.settle import settled_once

profile = labkit.current_profile()
method = settled_method(profile)
tokenizer = load_tokenizer(weights := locate(profile))
with quiet():
    model = load_base(weights, replace(method, kind="lora"), tokenizer=tokenizer)  # not quantized yet
linears = decoder_linears(model)
name = [n for n in linears if n.endswith("up_proj")][len(linears) // 14]  # of the middle layer
layer = linears[name]
W = layer.weight.detach().float().cpu()  # (out, in)
largest = W.abs().max() / W.std()
print(f"{profile.model}: {len(linears)} linears; {name} {tuple(W.shape)}, largest {largest:.1f} sigma")

# %% [markdown] tags=["en"]
"""
The simplest 4-bit code: 16 even steps from -1 to 1, times the largest magnitude of the matrix. Each weight goes to its nearest step; an edge lies halfway between two. Look at the relative error, and at how many weights share the inner half of the steps.
"""

# %% [markdown] tags=["zh", "of-d746d72b"]
"""
最简单的 4 比特编码：从 -1 到 1 的 16 个等距量化级，再乘以矩阵中最大的绝对值。每个权重取最近的量化级，分界点在两个量化级的正中间。请看相对误差，以及有多少权重挤在中间一半的量化级里。
"""

# %%
def nearest(levels, x):
    edges = (levels[1:] + levels[:-1]) / 2
    return levels[torch.bucketize(x, edges)]


uniform, scale = torch.linspace(-1, 1, 16), W.abs().max()
inner = ((W / scale).abs() < 0.5).float().mean()
error = relative_error(W, scale * nearest(uniform, W / scale))
print(f"relative error {error:.3f}; {inner:.1%} of the weights lie in the inner half of the range")

# %% [markdown] tags=["en"]
"""
The picture shows why. The vertical lines are the levels. On the left they are dense where there is nobody; on the right are the 16 levels of NF4, which this lesson derives. Compare the two errors in the titles.
"""

# %% [markdown] tags=["zh", "of-fe7b7510"]
"""
图中的竖线就是量化级。左边的量化级在没有权重的地方照样密布；右边是 NF4 的 16 个量化级，本节会把它们推出来。请比较标题里的两个误差。
"""

# %%
whole = {code: view(W, code=code, block_size=W.numel()) for code in ("uniform", "nf4")}
said = ", ".join(f"{code} {seen.relative_error:.3f}" for code, seen in whole.items())
labkit.show(levels_figure(whole), alt=f"One scale for the whole matrix, 16 levels; relative errors: {said}")

# %% [markdown] tags=["en"]
"""
## 2. Quantiles: where the 16 levels come from

If weights look like a normal sample, put the levels where the weights are: cut the bell curve into 16 parts of equal probability and take a level from each. `ndtri` is the quantile function *Q* of N(0, 1). Expect the error to fall well below that of even steps.
"""

# %% [markdown] tags=["zh", "of-ebdbe12e"]
"""
## 2. 分位数：16 个量化级从何而来

既然权重像正态样本，就把量化级放在权重多的地方：把钟形曲线切成 16 份概率相等的部分，每份取一个量化级。`ndtri` 是标准正态分布的分位数函数 *Q*。预期误差明显低于等距量化级。
"""

# %%
middles = ndtri((torch.arange(16) + 0.5) / 16)
middles /= middles.max()
error = relative_error(W, scale * nearest(middles, W / scale))
print([round(x, 3) for x in middles.tolist()], f"relative error {error:.3f}")

# %% [markdown] tags=["en"]
"""
Two things are wrong with this code: no level is exactly 0, so a weight of zero (padding, pruning) would become something else, and the levels are still even in *probability*, which is another thing than small in error. The paper prints its own recipe as equation 4:

> *q*ᵢ = ½ · [ *Q*( *i* / (2ᵏ + 1) ) + *Q*( (*i* + 1) / (2ᵏ + 1) ) ],  *k* = 4

Compute it as printed. Look at both ends, and count the finite values.
"""

# %% [markdown] tags=["zh", "of-8104d53a"]
"""
这个编码有两个毛病：没有一个量化级恰好是 0，值为零的权重（填充、剪枝）会变成别的数；而且它追求的是*概率*相等，这和误差小是两回事。论文给出的是公式 4：

> *q*ᵢ = ½ · [ *Q*( *i* / (2ᵏ + 1) ) + *Q*( (*i* + 1) / (2ᵏ + 1) ) ],  *k* = 4

照原样算一遍。请看两端，再数一数有几个有限值。
"""

# %%
p = torch.arange(18, dtype=torch.float64) / 17
q = (ndtri(p[:-1]) + ndtri(p[1:])) / 2  # i = 0 .. 16
finite = q[q.isfinite()]
assert torch.allclose(equation_4().double(), finite / finite.max())
symmetric = torch.allclose(finite, -finite.flip(0))
print(f"{len(q)} values, ends {q[0]:.0f} and {q[-1]:.0f}, {len(finite)} finite, symmetric: {symmetric}")

# %% [markdown] tags=["en"]
"""
15 finite values and two infinities: *Q*(0) and *Q*(1) are infinite. The program that everyone runs does something else. It starts at a probability just below 1, `offset` = 1 − (1/30 + 1/32)/2, and walks to 1/2 in 8 even steps on the positive side and 7 on the negative side; then it adds the zero and divides by the largest. Built here in four lines; the assertions say that bitsandbytes' table is this one, bit for bit.
"""

# %% [markdown] tags=["zh", "of-bc56c10a"]
"""
15 个有限值，外加两个无穷大，因为 *Q*(0) 和 *Q*(1) 是无穷。大家真正在跑的程序做的是另一件事：从略小于 1 的概率 `offset` = 1 − (1/30 + 1/32)/2 出发，等距走到 1/2，正半边走 8 步，负半边走 7 步；再补上 0，除以最大值。下面用四行搭出来；断言说明 bitsandbytes 的表就是它，一个比特都不差。
"""

# %%
with quiet():  # it would print a note about optional kernels
    from bitsandbytes.functional import create_normal_map, get_4bit_type

offset = 0.9677083  # 1 - (1/30 + 1/32) / 2, rounded as in bitsandbytes
positive = ndtri(torch.linspace(offset, 0.5, 9)[:-1].double())  # 8 values
negative = -ndtri(torch.linspace(offset, 0.5, 8)[:-1].double())  # 7 values
nf4 = torch.cat([negative, torch.zeros(1), positive]).float().sort().values
nf4 /= nf4.max()
assert torch.equal(nf4, normal_map())
assert torch.equal(nf4, get_4bit_type("nf4", device="cpu"))
assert torch.equal(nf4[nf4 != 0], create_normal_map()[create_normal_map() != 0])

# %% [markdown] tags=["en"]
"""
Side by side. Look at the last column: the generator's levels are not equation 4's, and the two halves of NF4 are not mirror images. An extra *positive* level pays for the exact zero.
"""

# %% [markdown] tags=["zh", "of-8bca5583"]
"""
并排比较。请看最后一列：生成程序的量化级不是公式 4 的量化级，而且 NF4 的正负两半并不对称。多出来的那个*正*量化级，是为了让 0 精确地出现。
"""

# %%
printed = equation_4()
print("      NF4   nearest value of equation 4   difference")
for level in nf4.tolist():
    closest = printed[(printed - level).abs().argmin()].item()
    print(f"{level:9.4f} {closest:20.4f} {level - closest:19.4f}")

# %% [markdown] tags=["en"]
"""
## 3. Blocks: one scale for 64 weights

One large weight stretches the scale of the whole matrix. So the format cuts the weights, row after row, into blocks of 64 and divides each block by its own largest magnitude, the *absmax*. One block by hand; look at the largest weight of the block (index 0 or 15: it has no error at all) and at the step between neighbours.
"""

# %% [markdown] tags=["zh", "of-18be25b7"]
"""
## 3. 分块：64 个权重共用一个刻度

一个大权重会把整个矩阵的刻度撑大。所以这种格式把权重逐行切成 64 个一块，每块除以自己最大的绝对值，即 *absmax*。先手工算一块；请看块里绝对值最大的权重（下标 0 或 15，它完全没有误差），以及相邻量化级之间的间隔。
"""

# %%
block = W.flatten()[:64]
absmax = block.abs().max()
index = (block[:, None] / absmax - nf4).abs().argmin(1)  # (64,)
back = nf4[index] * absmax
for i in dict.fromkeys([int(block.abs().argmax()), 1, 2, 3, 4]):
    print(f"weight {block[i]:9.5f} -> index {index[i]:2} -> {back[i]:9.5f}, {back[i] - block[i]:+9.5f}")

# %% [markdown] tags=["en"]
"""
The same for the whole matrix, and `labkit.theory.nf4.quantize` beside it. The indices must be equal. Two details decide single bits: bitsandbytes multiplies by the reciprocal of the absmax, and at an exact tie the lower level wins. Then the errors: expect blocks to gain a lot over one scale.
"""

# %% [markdown] tags=["zh", "of-0138734d"]
"""
对整个矩阵做同样的事，并与 `labkit.theory.nf4.quantize` 对照，下标必须完全相同。有两个细节决定个别比特：bitsandbytes 乘的是 absmax 的倒数；恰好在正中间时取较低的量化级。然后看误差：预期分块比只用一个刻度好得多。
"""

# %%
def by_hand(weight, block_size=64):
    rows = weight.reshape(-1, block_size)  # (blocks, 64)
    absmax = rows.abs().amax(1)  # (blocks,)
    edges = (nf4[1:] + nf4[:-1]) / 2
    return torch.bucketize(rows * (1 / absmax)[:, None], edges), absmax


indices, absmax = by_hand(W)
mine = quantize(W)
assert torch.equal(indices.flatten(), mine.indices.flatten().long())
assert torch.equal(absmax, mine.absmax)
for block_size in (64, W.numel()):
    error = relative_error(W, dequantize(quantize(W, block_size=block_size)))
    print(f"block of {block_size:7,}: relative error {error:.4f}")

# %% [markdown] tags=["en"]
"""
Dividing by the absmax changes the *distribution*. Whatever the weights were, one value in 64 is now exactly −1 or 1, and nothing lies beyond. Look at the two spikes at the ends, and at how empty the outer bins become when blocks grow: the levels out there serve almost nobody.
"""

# %% [markdown] tags=["zh", "of-7df44c44"]
"""
除以 absmax 之后，*分布*也变了。不管原来的权重怎样，现在每 64 个值里就有一个恰好是 −1 或 1，再往外什么都没有。请看两端的尖峰，以及块变大之后外侧有多空：那里的量化级几乎没有权重去用。
"""

# %%
panels = {f"block {size}": view(W, code="nf4", block_size=size) for size in (64, 1024)}
ends = {label: float(seen.shares[0] + seen.shares[-1]) for label, seen in panels.items()}
said = ", ".join(f"{label} {share:.2%}" for label, share in ends.items())
said = f"share of the two outermost levels: {said}"
labkit.show(levels_figure(panels), alt=f"Weights over their block's absmax; {said}")
print(said)

# %% [markdown] tags=["en"]
"""
## 4. What is stored, byte by byte

Two indices fit a byte. bitsandbytes puts the first into the high half. Pack by hand and compare with the bytes that bitsandbytes makes of the same matrix.
"""

# %% [markdown] tags=["zh", "of-a570bee0"]
"""
## 4. 存储：逐字节核对

一个字节放得下两个下标，bitsandbytes 把前一个放在高 4 位。手工打包，再与 bitsandbytes 对同一个矩阵生成的字节比较。
"""

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

flat = indices.flatten()
packed = (flat[::2] * 16 + flat[1::2]).to(torch.uint8)
theirs, state = quantize_4bit(W, quant_type="nf4", blocksize=64)
assert torch.equal(packed, theirs.flatten())
assert torch.equal(absmax, state.absmax)
print(f"{packed.numel():,} bytes equal; the first: {packed[0]:08b} = {flat[0]:04b} {flat[1]:04b}")
each = 8 * (packed.nbytes + absmax.nbytes) / W.numel()
print(f"{packed.nbytes:,} B of indices + {absmax.nbytes:,} B of absmax = {each:.3f} bits a weight")

# %% [markdown] tags=["en"]
"""
4 bits for the index and 32/64 = 0.5 for the absmax. One matrix proves little, so here are the cases on which two programs usually part ways, for both codes that bitsandbytes stores. All bytes and all constants must be equal. (The tests of this book repeat it on several hundred tensors.)
"""

# %% [markdown] tags=["zh", "of-9ee730f3"]
"""
下标 4 比特，absmax 分摊 32/64 = 0.5 比特。一个矩阵说明不了什么，下面是两个程序最容易出现分歧的情形，bitsandbytes 能存的两种编码都试。所有字节和常数都必须相同。（本书的测试在几百个张量上重复了这一比较。）
"""

# %%
torch.manual_seed(0)
hard = {
    "odd number of weights": torch.randn(7, 9),
    "short last block": torch.randn(100),
    "a block of zeros": torch.cat([torch.zeros(64), torch.randn(64)]),
    "values on the edges": torch.cat([(nf4[1:] + nf4[:-1]) / 2, torch.ones(1)]),
    "bfloat16": W.bfloat16(),
    "float16": W.half(),
    "around 1e-40": 1e-40 * torch.randn(64),
}
for label, tensor in hard.items():
    for code in ("nf4", "fp4"):
        theirs, state = quantize_4bit(tensor, quant_type=code)
        result = quantize(tensor, code=code)
        assert torch.equal(pack(result), theirs.flatten())
        assert torch.equal(result.absmax, state.absmax)
    print(f"{label:22} {tensor.numel():6} weights, {theirs.numel():6} bytes: equal")

# %% [markdown] tags=["en"]
"""
On one point the book differs on purpose. An infinite weight makes an infinite absmax, and the rest of its block is gone. bitsandbytes says nothing; look at what comes back. `quantize` refuses.
"""

# %% [markdown] tags=["zh", "of-2ae5b7ed"]
"""
有一点本书故意不同。一个无穷大的权重会让 absmax 变成无穷大，同块的其他权重就全毁了。bitsandbytes 一声不吭；请看取回来的是什么。`quantize` 则拒绝执行。
"""

# %%
broken = torch.tensor([torch.inf, 0.5, -0.25, 0.1])
print("bitsandbytes gives back:", dequantize_4bit(*quantize_4bit(broken, quant_type="nf4")).tolist())
try:
    quantize(broken)
except labkit.LabError as refused:
    print(refused)

# %% [markdown] tags=["en"]
"""
## 5. Double quantization: quantize the constants too

Half a bit a weight for constants is a ninth of the whole. The absmax values are all positive and close together, so subtract their mean and store the rest in 8 bits, with one float32 for each 256 of them. The 8-bit code is bitsandbytes' *dynamic* map: 256 levels in seven decades. The paper calls these constants "8-bit floats"; no FP8 format has these levels. Look at the spacing, then at the assertion.
"""

# %% [markdown] tags=["zh", "of-a308df5e"]
"""
## 5. 双重量化：把常数也量化

每个权重为常数花半个比特，占总数的九分之一。absmax 都是正数，而且彼此接近，所以先减去平均值，余下的用 8 比特存，每 256 个共用一个 float32。这 8 比特用的是 bitsandbytes 的 *dynamic* 编码：256 个量化级分布在七个数量级上。论文称之为“8 比特浮点”，但没有哪种 FP8 格式是这些量化级。请看间隔，再看断言。
"""

# %%
ends = dynamic_map()[[128, 129, 130, 253, 254, 255]]
print("smallest and largest positive levels:", [f"{x:.2g}" for x in ends.tolist()])
double = double_quantize(absmax)
theirs, state = quantize_4bit(W, quant_type="nf4", compress_statistics=True)
assert torch.equal(double.indices, state.absmax)  # 8 bits a block
assert torch.equal(double.outer, state.state2.absmax)
assert torch.equal(double.offset, state.offset)
print(f"{len(absmax)} constants: mean {double.offset:.4f}, standard deviation {absmax.std():.4f}")

# %% [markdown] tags=["en"]
"""
Now the opening question. 4 bits, plus 8 bits for each 64 weights, plus 32 bits for each 64 × 256. Expect 4.127, and a saving of 0.373, the lecture's "about 0.4". The last column is what this matrix really takes; it is a little above the limit because the last group of 256 is not always full.
"""

# %% [markdown] tags=["zh", "of-ec944117"]
"""
回到开头的问题。4 比特，加上每 64 个权重 8 比特，再加上每 64 × 256 个权重 32 比特。预期是 4.127，节省 0.373，也就是讲义的“约 0.4”。最后一列是这个矩阵实际占用的；它略高于极限值，因为最后一组 256 个常数不一定满。
"""

# %%
for block_size in (32, 64, 128, 256):
    plain, both = (bits_per_weight(block_size, double_quant=flag) for flag in (False, True))
    exact = bits_per_weight(block_size, double_quant=True, n_weights=W.numel())
    saved = plain - both
    print(f"block {block_size:3}: {plain:.3f} -> {both:.3f} bits, {saved:.3f} saved; this matrix {exact:.3f}")
labkit.reveal("p3_1", bits_per_weight(64, double_quant=True))

# %% [markdown] tags=["en"]
"""
What does it cost? Dequantize with the restored constants. Look at the fourth digit: practically nothing, because a scale that is off by a few thousandths adds its error in quadrature to one of 9 %.

A footnote for the curious, found while writing this lesson: bitsandbytes' compiled CPU code (0.50) does not search the nearest of the 256 levels. It rounds to one of 65,536 steps and looks the level up in a table, so now and then a constant gets the second nearest. `labkit` can do both. The last line says how rare that is.
"""

# %% [markdown] tags=["zh", "of-e71062ce"]
"""
代价是什么？用还原出来的常数反量化。请看第四位数字：几乎没有代价，因为刻度差千分之几，与 9% 的误差按平方和叠加，影响微乎其微。

写这一节时发现的一个小细节：bitsandbytes 0.50 编译好的 CPU 代码并不去找 256 个量化级中最近的那个，而是先舍入到 65,536 个刻度之一，再查表，所以偶尔会取到第二近的量化级。两种规则 `labkit` 都能算。最后一行说明这有多罕见。
"""

# %%
restored = restore(double)
assert torch.equal(dequantize(mine, restored), dequantize_4bit(theirs, state))
print(f"constants off by {relative_error(absmax, restored):.4f}")
errors = [relative_error(W, dequantize(mine, constants)) for constants in (absmax, restored)]
print(f"weights off by {errors[0]:.6f} before, {errors[1]:.6f} after")

many = quantize(torch.randn(20_000, 64)).absmax
table, plain = (double_quantize(many, rule=rule) for rule in ("table", "nearest"))
differ = (table.indices != plain.indices).double().mean()
errors = [(restore(result) - many).abs().mean() for result in (table, plain)]
print(f"{differ:.2%} of {len(many):,} constants differ;", end=" ")
print(f"mean error {errors[0]:.6f} by table, {errors[1]:.6f} by the nearest level")

# %% [markdown] tags=["en"]
"""
## 6. How normal are real weights?

Quantiles of a normal distribution are the right idea only if weights are normal. Compare three kinds of linear with a true normal sample: on the dashed line the quantiles agree. Look at the ends.
"""

# %% [markdown] tags=["zh", "of-4d1c901f"]
"""
## 6. 真实的权重有多“正态”？

只有权重真的服从正态分布，取正态分位数才有道理。下面把三种线性层和一个真正的正态样本放在一起：落在虚线上表示分位数一致。请看两端。
"""

# %%
prefix = name.split(".")[0]
kinds = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")  # of the same layer
real = {kind: linears[f"{prefix}.{kind}"].weight.detach().float().cpu() for kind in kinds}
samples = {kind.split(".")[1]: weight for kind, weight in real.items()}
samples["N(0, 1)"] = torch.randn(W.numel())


def kurtosis(x):
    x = x.flatten().double() - x.double().mean()
    return float((x**4).mean() / (x**2).mean() ** 2)  # 3 for a normal distribution


said = ", ".join(f"{label} {kurtosis(sample):.2f}" for label, sample in samples.items())
labkit.show(qq_figure(samples), alt=f"Quantiles against those of a normal distribution. Kurtosis: {said}")
print("kurtosis:", said)

# %% [markdown] tags=["en"]
"""
"Approximately normal" is fair in the middle; the tails are heavier, a little on `tiny` and clearly on a real model (on `laptop` the three have a kurtosis of 6.1, 5.4 and 4.6, and the largest weight of section 1 lies at 15 sigma). A test such as Shapiro-Wilk answers another question: could a sample *of this size* have come from an exactly normal distribution? Look at the smallest p-value in the last column: with enough weights a test finds even a small deviation, while W, which measures how large it is, stays near 1.
"""

# %% [markdown] tags=["zh", "of-97907f7c"]
"""
说“近似正态”，对中间部分没有错；尾部则更重：`tiny` 上只重一点，真实模型上很明显（`laptop` 上这三层的峰度是 6.1、5.4 和 4.6，第 1 部分那个最大的权重在 15 倍标准差处）。Shapiro-Wilk 之类的检验回答的是另一个问题：*这么多*个数，有没有可能来自严格的正态分布？请看最后一列里最小的 p 值：权重足够多时，很小的偏离也查得出来；而衡量偏离大小的 W 一直接近 1。
"""

# %%
torch.manual_seed(0)
for label, sample in samples.items():
    order = torch.randperm(sample.numel())
    print(f"{label:10}", end="")
    for n in (100, 1000, 5000):
        test = shapiro(sample.flatten()[order[:n]].double().numpy())
        print(f"n={n}: W {test.statistic:.4f}, p {test.pvalue:7.1e}", end="    " if n < 5000 else "\n")

# %% [markdown] tags=["en"]
"""
## 7. Is NF4 optimal?

First the errors on perfectly normal weights, where NF4 should shine. `normal_error` computes them exactly, by integrating over the distribution of the absmax; the third column checks it on 2 million random weights. The codes: bitsandbytes' two; `int4`, −7 to 7; even steps; `af4`, a table that bitsandbytes carries from a paper against NF4's optimality; and Lloyd-Max, the 16 levels of least squared error. Look for the row that beats NF4.
"""

# %% [markdown] tags=["zh", "of-4c474f7c"]
"""
## 7. NF4 是最优的吗？

先看严格正态的权重，这是 NF4 的主场。`normal_error` 对 absmax 的分布积分，算出精确值；第三列用 200 万个随机权重核对。参加比较的编码：bitsandbytes 的两种；`int4`，即 −7 到 7；等距量化级；`af4`，bitsandbytes 自带的一张表，出自一篇质疑 NF4 最优性的论文；以及 Lloyd-Max，也就是平方误差最小的 16 个量化级。请找出比 NF4 更好的那一行。
"""

# %%
sample = torch.randn(2**15, 64)
for code in CODES:
    exact, usage = normal_error(code), entropy_bits(normal_usage(code))
    sampled = (dequantize(quantize(sample, code=code)) - sample).square().mean()
    ratio = exact / normal_error("nf4")
    print(f"{code:8} error {exact:.5f}, sampled {sampled:.5f}, {ratio:.3f} times NF4's, entropy {usage:.3f}")
labkit.reveal("p3_3", entropy_bits(normal_usage("nf4")))

# %% [markdown] tags=["en"]
"""
NF4 is good, and it is not optimal: Lloyd-Max has 10 % less squared error at the same 4 bits. Nor does NF4 use its bits fully: the entropy of its indices is 3.885 bits. "Information-theoretically optimal" in the paper means *each level equally often*, which holds for N(0, 1) and no longer after the division by absmax (section 3).

And is equal use a goal at all? Cut the normalized values into 16 parts of exactly equal probability and give each its best level, its mean. Expect the full 4 bits of entropy and a *larger* error than NF4's: equal use and small error are different aims.
"""

# %% [markdown] tags=["zh", "of-59006ca1"]
"""
NF4 不错，但不是最优：同样 4 比特，Lloyd-Max 的平方误差小 10%。NF4 的比特也没有用满：下标的熵是 3.885 比特。论文说的“信息论意义上最优”指的是*每个量化级使用得一样多*，这对 N(0, 1) 成立，除以 absmax 之后就不再成立（见第 3 部分）。

而且，“使用得一样多”本身值得追求吗？把归一化后的值切成概率严格相等的 16 份，每份给它最好的量化级，也就是平均值。预期熵恰好是 4 比特，误差却比 NF4 *更大*：使用均匀和误差小是两个不同的目标。
"""

# %%
scales = sample.abs().amax(1, keepdim=True)
place = torch.bucketize((sample / scales).double(), equal_mass_edges(64))
means = torch.stack([(sample / scales)[place == i].mean() for i in range(16)])
equal_use = (means[place] * scales - sample).square().mean()
shares = torch.bincount(place.flatten()) / place.numel()
print(f"equal use: entropy {entropy_bits(shares):.3f} bits, error {equal_use:.5f}; NF4 {normal_error('nf4'):.5f}")

# %% [markdown] tags=["en"]
"""
Which block size? Smaller blocks have smaller errors and cost more constants. NF4 has *one* table for all block sizes, and the best levels move with the size, so its distance to the best code grows. Look at the right end.
"""

# %% [markdown] tags=["zh", "of-82d48e1b"]
"""
块该取多大？块越小误差越小，常数也越多。NF4 对所有块大小都用*同一张*表，而最好的量化级会随块大小移动，所以它离最优越来越远。请看右端。
"""

# %%
sizes = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
curves = {code: [normal_error(code, size) for size in sizes] for code in CODES if code != "af4"}
gap = 1 - curves["lloyd"][-1] / curves["nf4"][-1]
said = f"at 4,096 Lloyd-Max is {gap:.1%} below NF4"
labkit.show(error_figure(curves, sizes), alt=f"Mean squared error by block size; {said}")
print(*(f"NF4 at {size}: {error:.5f}" for size, error in zip(sizes, curves["nf4"], strict=True)), said, sep="\n")

# %% [markdown] tags=["en"]
"""
Now real weights. With the kernel running, choose the tensor, the code, the block size and double quantization; the line below the controls states error, stored bits and used bits. Two things to try: FP4 at block 64, and NF4 at block 4,096 with an eye on the outer levels.
"""

# %% [markdown] tags=["zh", "of-24e0e431"]
"""
再看真实的权重。内核运行时，可以选择张量、编码、块大小和是否双重量化；控件下面一行写出误差、存储的比特数和用上的比特数。建议试两种：FP4 配块大小 64，以及 NF4 配块大小 4,096，注意最外侧的量化级。
"""

# %%
tensor_widget({f"{prefix}.{kind}": weight for kind, weight in real.items()} | {name: W})

# %% [markdown] tags=["en"]
"""
## 8. One outlier ruins a block

Take the first block, and make one weight 5, 10, 20, 50 times as large as the standard deviation. The other 63 do not change. Look at their error and at how many different levels they still use.
"""

# %% [markdown] tags=["zh", "of-e0b16be2"]
"""
## 8. 一个离群值毁掉一个块

取第一个块，把其中一个权重改成标准差的 5、10、20、50 倍，其余 63 个不动。请看这 63 个的误差，以及它们还用得上几个不同的量化级。
"""

# %%
for size in (None, 5, 10, 20, 50):
    changed = block.clone()
    if size:
        changed[10] = size * block.std()
    others = torch.arange(64) != 10
    result = quantize(changed)
    error = relative_error(changed[others], dequantize(result)[others])
    used = result.indices[others].unique().numel()
    print(f"outlier {size or 'none'!s:>5}: error of the others {error:.3f}, they use {used} levels")

# %% [markdown] tags=["en"]
"""
From about 20 sigma on, the 63 others fall onto a few levels around zero, and at 50 sigma most of them *are* zero. Blocks keep the damage local: 63 weights, not a million. That is the real argument for small blocks, and the reason why formats for activations, where outliers are common, look different.

## 9. From weight error to layer error to loss

A weight error of 9 % sounds bad. What arrives at the layer's output? Catch the inputs that this layer really sees on held-out rows. Expect 9 % for random inputs, where errors add up like the outputs do. Compare with the real ones, number by number.
"""

# %% [markdown] tags=["zh", "of-40405b28"]
"""
从大约 20 倍标准差开始，其余 63 个只剩零附近的几个量化级；到 50 倍时，大多数就*变成*零了。分块让损害局限在局部：63 个权重，而不是一百万个。这才是小块真正的理由；激活值里离群值很常见，所以它们用的格式也不一样。

## 9. 从权重误差到层输出误差，再到损失

9% 的权重误差听起来很糟。到了这一层的输出，还剩多少？先截获这一层在留出样本上真正看到的输入。对随机输入，预期也是 9%，因为误差和输出以同样的方式叠加。再逐个数字地和真实输入比较。
"""

# %%
rows = rows_of(profile, "heldout")[: profile.eval_rows // 2]
seen = []
hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(0, 1)))
reference, tokens = answer_logprobs(model, tokenizer, rows)  # (n, V) log-probabilities, (n,) tokens
hook.remove()
X, Wq = torch.cat(seen).float().cpu(), dequantize(mine)  # X: (tokens, in)
for label, inputs in (("random", torch.randn_like(X)), ("real", X)):
    gains = [float((inputs @ matrix.T).norm() / inputs.norm()) for matrix in (W, Wq - W)]
    print(f"{label:6} inputs: output / input {gains[0]:.3f}, its error / input {gains[1]:.4f},", end=" ")
    print(f"ratio {gains[1] / gains[0]:.4f}")

# %% [markdown] tags=["en"]
"""
Real inputs point mostly along a few common directions. A trained layer amplifies some of these; its rounding error knows nothing of them and stays as it was. So on `tiny` the output is off by 5 % and not 9 %. It could be the other way round in another layer: the weight error alone does not say.

Now all linears of the model at once, under each code. `fake_quantized` swaps each weight for its quantized and dequantized self, which is what a 4-bit model computes with. Three measures on the same answers:

- the mean **weight error**;
- the change of the **held-out loss** (nats per answer token), with its standard error, token by token;
- the **divergence** (Kullback-Leibler) of the predictions from those of the original model: 0 if nothing changed. The loss can fall by luck; this cannot.

Look at whether the three columns agree on an order.
"""

# %% [markdown] tags=["zh", "of-8610289f"]
"""
真实输入大多沿着少数几个共同的方向。训练过的层会放大其中一些方向，而舍入误差对此一无所知，大小不变。所以在 `tiny` 上，输出只偏了 5%，而不是 9%。换一层也可能反过来：只看权重误差是看不出来的。

现在把模型的所有线性层同时量化，每种编码各试一次。`fake_quantized` 把每个权重换成量化再反量化之后的值，4 比特模型计算时用的正是这些值。在同样的回答上看三个指标：

- 平均**权重误差**；
- **留出集损失**的变化（nat/回答词元），逐词元比较，附标准误；
- 预测分布与原模型的**散度**（KL 散度）：完全没变就是 0。损失可能碰巧下降，散度不会。

请看三列给出的名次是否一致。
"""

# %%
before, _ = heldout_loss(model, tokenizer, rows)
print(f"{profile.model}, {len(tokens)} answer tokens, loss {before:.4f}")
for code in CODES:
    with fake_quantized(model, code=code) as errors:
        found, _ = answer_logprobs(model, tokenizer, rows)
    change, spread = loss_change(reference, found, tokens)
    mean_error = sum(errors.values()) / len(errors)
    print(f"{code:8} weights {mean_error:.4f}   loss {change:+.4f} +- {spread:.4f}", end="   ")
    print(f"divergence {divergence(reference, found):.5f}")

# %% [markdown] tags=["en"]
"""
On `tiny`, a base model that was never shown an instruction, the loss is high, and rounding moves it up or down by about a hundredth, whatever the code: FP4, the roughest, even lowers it. The *divergence* still sees an order. A better trained model tells more. The next table was measured on SmolLM2-135M-Instruct (`benchmarks/nf4_codes.py`; hardware and date are printed). Compare the column of weight errors with the other two.
"""

# %% [markdown] tags=["zh", "of-00092641"]
"""
`tiny` 是个从没见过指令的基座模型：损失本来就高，不管哪种编码，舍入都只让它上下波动百分之一左右，最粗糙的 FP4 甚至让损失下降了。*散度*还看得出名次。训练得更好的模型更能说明问题。下表是在 SmolLM2-135M-Instruct 上测的（`benchmarks/nf4_codes.py`，硬件和日期会打印出来）。请把权重误差那一列和另外两列对照。
"""

# %%
import json

measured = json.loads((data_folder() / "measurements" / "nf4_laptop.json").read_text(encoding="utf-8"))
print(f"{measured['model']}, {measured['hardware']}, {measured['date']}, loss {measured['loss']:.3f}")
for row in measured["effects"]:
    print(f"{row['label']:26} weights {row['weight_error']:.4f}   loss {row['loss_change']:+.3f} +- "
          f"{row['loss_change_standard_error']:.3f}   divergence {row['divergence']:.3f}")

# %% [markdown] tags=["en"]
"""
Three lessons in one table:

- **The smallest weight error does not win.** Lloyd-Max has the least error and costs 0.457 nats, NF4 only 0.270. Lloyd-Max has no level at exactly 0. Force one in, at a slightly larger weight error, and it costs 0.320; force in −1 and 1 instead, and it still costs 0.429; with all three it is at NF4's level (0.285, within the uncertainty). Even steps have a smaller weight error than FP4 and int4 and are the worst by far; they have no zero either.
- **The same weight error weighs differently by place.** Quantizing only `down_proj` diverges six times as far as only `q_proj`, at equal error.
- **Block size matters, double quantization does not.** 0.196 at block 32, 0.700 at 4,096; with double quantization 0.274 instead of 0.270.

So "optimal" needs the question *for what?*, and for loss nobody has a formula. And a caution about size: 135 million parameters are few. For LLaMA with 7 to 65 billion, the QLoRA paper reports none to speak of: 5-shot MMLU 53.1 with NF4 and double quantization, 53.0 in bfloat16, 52.2 with FP4 (means of its Table 4).

## 10. Does fine-tuning repair it for free?

QLoRA trains an adapter on top of the rounded weights, so could it not learn the error away? Two things make that more modest. An adapter of rank r cannot represent a full-rank error; and it sees only its training data. Train the same short adapter on the original weights, on NF4, and on a brutal code of three levels whose damage is easy to see. (On a GPU the line printed first says how the rows of an update are split, by the memory that is free.) Look at the *gap* to the first row, before and after.
"""

# %% [markdown] tags=["zh", "of-494cae6c"]
"""
一张表，三个教训：

- **权重误差最小的不一定赢。** Lloyd-Max 误差最小，损失却增加 0.457 nat，NF4 只增加 0.270。Lloyd-Max 没有恰好为 0 的量化级。硬加一个 0，权重误差略大，损失只增加 0.320；改为硬加 −1 和 1，仍然增加 0.429；三个都加上，就回到 NF4 的水平（0.285，在误差范围内）。等距量化级的权重误差比 FP4 和 int4 都小，结果却差得最远；它同样没有 0。
- **同样大的权重误差，位置不同，后果不同。** 只量化 `down_proj`，散度是只量化 `q_proj` 的六倍，而权重误差相同。
- **块大小要紧，双重量化不要紧。** 块 32 是 0.196，块 4,096 是 0.700；加上双重量化是 0.274，不加是 0.270。

所以说“最优”之前要先问：*对什么*最优？而对损失，没有人有公式。还要注意规模：1.35 亿参数算很少。对 70 亿到 650 亿参数的 LLaMA，QLoRA 论文报告几乎没有损失：5-shot MMLU 平均分，NF4 加双重量化 53.1，bfloat16 53.0，FP4 52.2（论文表 4）。

## 10. 微调能白白补回误差吗？

QLoRA 在舍入后的权重上训练适配器，难道不能把误差学掉？有两点让人不能太乐观：秩为 r 的适配器表示不了满秩的误差；而且它只看得到训练数据。下面用同样短的训练，分别在原始权重、NF4，以及只有三个量化级的粗暴编码上训练适配器，后者的损害一眼就能看出来。（在 GPU 上，先打印的那一行说明一次更新的样本怎样分批，由空闲显存决定。）请看与“original”那一行的*差距*，训练前后各是多少。
"""

# %%
import gc

force = False  # True settles anew, by what is free now
steps = profile.steps // 3
short = replace(profile, steps=steps, method=replace(profile.method, kind="lora"))
short, why = settled_once("lesson03", short, force=force)
print(text(*why))
model = linears = layer = None  # each run loads its own
train_rows, heldout_rows = rows_of(profile, "train"), rows_of(profile, "heldout")


def short_run(code):
    """Held-out loss before and after a short LoRA run on weights rounded to code (None: not rounded)."""
    with quiet():
        base = load_base(weights, replace(method, kind="lora"), tokenizer=tokenizer)
        for linear in decoder_linears(base).values() if code else ():
            linear.weight.data = dequantize(quantize(linear.weight.data, code=code))
        start, _ = heldout_loss(base, tokenizer, heldout_rows)
        trainer = build_trainer(base, tokenizer, short, train_rows[: steps * short.rows_per_step], runs_folder())
        trainer.train()
    end, _ = heldout_loss(trainer.model, tokenizer, heldout_rows)
    del trainer, base
    gc.collect()  # or the next run would start with two models in memory
    return start, end


# %%
runs = {"original": None, "NF4": "nf4", "3 levels": [-1, 0, 1]}
results = {label: short_run(code) for label, code in runs.items()}
for label, losses in results.items():
    gaps = [loss - other for loss, other in zip(losses, results["original"], strict=True)]
    print(f"{label:9} loss {losses[0]:.3f} -> {losses[1]:.3f}", end="   ")
    print(f"gap to the original {gaps[0]:+.3f} -> {gaps[1]:+.3f}")

# %% [markdown] tags=["en"]
"""
What this shows, and what it does not: one seed, one short run. On `tiny` NF4's gap is too small to see at either end, so nothing can be said about its repair. Three levels do enough damage to see; training closes a large part of the gap (0.193 to 0.071) and not all of it, *and* it spent steps of the adapter on repair. On `laptop` the same cell showed NF4's gap fall from 0.270 to 0.165 in 32 steps (2 cores of an AMD EPYC, 2026-11-24): smaller, and far from gone. On text unlike the training data nothing was measured at all. "Repairs part of it, on the data it sees" is what the run supports; "for free" is not.

## 11. What stays in 16 bits

Quantized are the linears of the decoder layers and nothing else. bitsandbytes leaves alone the embedding, the LM head, the norms (and, if there are any, biases). Count for the Qwen3 family; then compare with your second guess. (Gigabytes of the 8B model are left to exercise q3_3.)
"""

# %% [markdown] tags=["zh", "of-05869838"]
"""
这能说明什么、不能说明什么：只有一个随机种子、一次短训练。在 `tiny` 上，NF4 的差距在训练前后都小得看不出来，所以谈不上有没有补回来。三个量化级的损害足够大：训练补回了大部分差距（从 0.193 到 0.071），但不是全部，*而且*适配器把一部分训练步数花在了修补上。在 `laptop` 上，同一个单元格显示，32 步之后 NF4 的差距从 0.270 降到 0.165（AMD EPYC 两个核，2026-11-24）：小了一些，但远没有消失。对与训练数据不同的文本，这里什么也没测。“在它见过的数据上补回一部分”，这是本次运行支持的结论；“白白补回”则不是。

## 11. 哪些仍是 16 比特

被量化的只有解码层里的线性层。嵌入、LM head、归一化层（以及可能有的偏置），bitsandbytes 都不动。下面对 Qwen3 系列数一数，再和你的第二个猜测比较。（8B 模型占多少 GB，留给练习 q3_3。）
"""

# %%
for model_name in ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "qwen3-32b"):
    shape = shape_of(model_name)
    share = shape.linear_params() / shape.n_params
    mean_bits = share * bits_per_weight(double_quant=True) + (1 - share) * 16
    print(f"{model_name:11} {share:6.1%} of {shape.n_params:,} quantized:", end=" ")
    print(f"{mean_bits:5.2f} bits on average, 1/{16 / mean_bits:.2f} of bfloat16")
eight = shape_of("qwen3-8b")
labkit.reveal("p3_2", 100 * eight.linear_params() / eight.n_params)

# %% [markdown] tags=["en"]
"""
"4 bits means a quarter of the memory" fails twice: a weight takes 4.127 bits, and a large part of a small model is not quantized at all. Qwen3-0.6B shrinks to less than half, not to a quarter.

## 12. Dequantize and multiply

"The model computes in 4 bits" is wrong as well. No unit multiplies NF4 indices: they are names of levels, not numbers. Every product is taken in 16 or 32 bits, with weights that were looked up and scaled first. The proof by equality: the output of bitsandbytes' 4-bit product is that of our dequantized weight. The proof by memory: the ledger of lesson 01 watches the backward pass through it. Expect a temporary as large as the whole matrix. (Forward, the look-up happens inside one operator; on a GPU it may go tile by tile.) The proof by time comes last.
"""

# %% [markdown] tags=["zh", "of-734c52d2"]
"""
“4 比特就是四分之一的显存”错在两处：一个权重占 4.127 比特；而模型越小，没被量化的部分占比越大。Qwen3-0.6B 只缩小到不足一半，而不是四分之一。

## 12. 先反量化，再相乘

“模型用 4 比特计算”也不对。没有任何运算单元能直接乘 NF4 的下标：它们是量化级的编号，不是数值。每次乘法都用 16 或 32 比特，权重要先查表、再乘刻度。用相等来证明：bitsandbytes 的 4 比特乘法，输出就是我们反量化出的权重算出来的输出。用内存来证明：让第 01 节的账本盯着穿过它的反向传播，预期会出现一个和整个矩阵一样大的临时张量。（前向时查表在一个算子内部完成；在 GPU 上可以一小块一小块地做。）最后用时间来证明。
"""

# %%
import time

from bitsandbytes import matmul_4bit

x, rebuilt = X[:32].clone().requires_grad_(), dequantize(mine, restored)  # (32, in), (out, in)
output = matmul_4bit(x, theirs, quant_state=state)  # the bytes of section 5
assert relative_error((x @ rebuilt.T).detach(), output.detach()) < 1e-5
with Ledger([x, theirs, output]) as ledger:
    output.sum().backward()
climb = ledger.peak_bytes - ledger.curve[0]
print(f"{theirs.nbytes:,} bytes stored; backward climbs by {climb:,}, the float32 matrix has {W.nbytes:,}")


def milliseconds(product, repeats=50):
    product()
    started = time.perf_counter()
    for _ in range(repeats):
        product()
    return 1e3 * (time.perf_counter() - started) / repeats


with torch.no_grad():
    products = (lambda: x @ rebuilt.T, lambda: matmul_4bit(x, theirs, quant_state=state))
    times = [milliseconds(product) for product in products]
print(f"32 tokens on this CPU: {times[0]:.3f} ms in float32, {times[1]:.3f} ms from 4 bits")

# %% [markdown] tags=["en"]
"""
So 4-bit storage saves memory between uses, and pays for it in time: every use of a weight dequantizes it first, in the backward pass once more. What QLoRA gains in training is room, not speed. (Where *reading* the weights is what takes the time, as when a GPU generates one token after the other, fewer bytes can also be faster.)
"""

# %% [markdown] tags=["zh", "of-9fc1c232"]
"""
可见，4 比特存储省的是“不用的时候”的内存，付出的是时间：每次用到一个权重都要先反量化，反向传播时还要再来一次。训练时，QLoRA 换来的是空间，不是速度。（如果时间主要花在*读取*权重上，例如 GPU 逐个词元生成时，字节少也可能更快。）
"""

# %% [markdown] tags=["en"]
"""
The lecture's sentences on QLoRA and NF4, each against what came out here. A ✓ agrees with the lecture. Look at "optimal", of which nothing is left, and at the two values of "nearly normal", which hold the error measured on SmolLM2-135M against that of normal weights.
"""

# %% [markdown] tags=["zh", "of-8aac7237"]
"""
讲义关于 QLoRA 和 NF4 的说法，逐条与本书得到的值对照。✓ 表示与讲义相符。请看“最优”这一条：没有一项站得住；再看“近似正态”那一条里的两个值，它们把 SmolLM2-135M 上实测的误差和正态权重的误差放在一起比。
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="03")

# %% [markdown] tags=["en"]
"""
## Exercises

**q3_1 (compute).** Quantize one block: return the indices and the absmax. `block` is a 1-D tensor, `table` the ascending levels. Nearest level, the lower one at a tie, and a block of zeros must work. The check uses blocks with a zero, with ties and with nothing but zeros, and one table that is not NF4's.
"""

# %% [markdown] tags=["zh", "of-1f2018dc"]
"""
## 练习

**q3_1（计算）** 量化一个块：返回下标和 absmax。`block` 是一维张量，`table` 是升序的量化级。取最近的量化级，恰在正中间时取较低的，全零的块也要能处理。检查用的块里有零、有恰在正中间的值、有全零的块，还有一张不是 NF4 的表。
"""

# %%
from labkit import check, hint  # noqa: F401


def nf4_quantize(block, table):
    """Indices (n,) into the ascending `table` and the absmax of `block` (n,)."""
    ### BEGIN SOLUTION
    absmax = block.abs().max()
    scaled = block / absmax if absmax > 0 else block
    edges = (table[1:] + table[:-1]) / 2
    return torch.bucketize(scaled, edges), absmax
    ### END SOLUTION


check("q3_1", nf4_quantize)

# %% [markdown] tags=["en", "hint-q3_1"]
"""
Section 3 quantizes one block in three lines, and the whole matrix in a function.
---
Largest magnitude, not largest value. Edges are halfway between neighbouring levels; torch.bucketize(x, edges) gives the lower side when x is an edge. Where absmax is 0, do not divide.
---
absmax = block.abs().max(); scaled = block / absmax if absmax > 0 else block; return torch.bucketize(scaled, (table[1:] + table[:-1]) / 2), absmax
"""

# %% [markdown] tags=["zh", "hint-q3_1", "of-f84c22c9"]
"""
第 3 部分用三行量化了一个块，又用一个函数量化了整个矩阵。
---
取绝对值最大，不是值最大。分界点在相邻量化级的正中间；x 恰好等于分界点时，torch.bucketize(x, edges) 给出较低一侧。absmax 为 0 时不要做除法。
---
absmax = block.abs().max()；scaled = block / absmax if absmax > 0 else block；return torch.bucketize(scaled, (table[1:] + table[:-1]) / 2), absmax
"""

# %% [markdown] tags=["en"]
"""
**q3_2 (compute).** Bits per weight of a very large tensor for any block size, with and without double quantization. Plain: one float32 per block. Double: 8 bits per block and one float32 per 256 blocks.
"""

# %% [markdown] tags=["zh", "of-bce76b50"]
"""
**q3_2（计算）** 对任意块大小，算出一个很大的张量每个权重占多少比特，有或没有双重量化。没有：每块一个 float32。有：每块 8 比特，每 256 个块再加一个 float32。
"""

# %%
def bits(block_size: int, double_quant: bool) -> float:
    """Stored bits per weight, constants included."""
    ### BEGIN SOLUTION
    per_block = 8 + 32 / 256 if double_quant else 32
    return 4 + per_block / block_size
    ### END SOLUTION


check("q3_2", bits)

# %% [markdown] tags=["en", "hint-q3_2"]
"""
Section 5 adds the three terms for a block of 64.
---
Everything that is stored once per block costs its bits divided by block_size. With double quantization that is 8 bits and a 256th of 32 bits.
---
4 + (8 + 32 / 256 if double_quant else 32) / block_size
"""

# %% [markdown] tags=["zh", "hint-q3_2", "of-385d7809"]
"""
第 5 部分对块大小 64 加过这三项。
---
每块存一次的东西，分摊到每个权重就是它的比特数除以 block_size。双重量化时，这是 8 比特加上 32 比特的 256 分之一。
---
4 + (8 + 32 / 256 if double_quant else 32) / block_size
"""

# %% [markdown] tags=["en"]
"""
**q3_3 (predict).** Two predictions, before you run anything. (1) Two layers of 256 × 256, both normal at heart: in `A` one weight of each block of 64 is ten times as large; in `B` the *rows* differ in size by a factor of 100. Which one loses more, relatively, in NF4 at block 64? (2) How many GB does Qwen3-8B take with its linears in NF4 with double quantization and everything else in bfloat16? Within 2 %, by arithmetic. You know its parameters from section 11; `shape_of("qwen3-8b")` has the counts. Answer with a pair, e.g. `("B", 12.3)`; afterwards try `two_layers()` from `labkit.page.questions.q03_samples`.
"""

# %% [markdown] tags=["zh", "of-16fe1312"]
"""
**q3_3（预测）** 运行之前先做两个预测。（1）两个 256 × 256 的层，底子都是正态：`A` 的每 64 个权重里有一个放大到十倍；`B` 的各*行*大小相差可达 100 倍。用块大小 64 的 NF4，哪一个的相对误差更大？（2）Qwen3-8B 的线性层用 NF4 加双重量化，其余用 bfloat16，共占多少 GB？误差 2% 以内，请自己算。参数量见第 11 部分，`shape_of("qwen3-8b")` 里有各项数目。用一对值回答，例如 `("B", 12.3)`；答完可以用 `labkit.page.questions.q03_samples` 里的 `two_layers()` 试一试。
"""

# %%
prediction = (..., ...)
### BEGIN SOLUTION
in_linears, others = eight.linear_params(), eight.n_params - eight.linear_params()
prediction = ("A", (4.127 / 8 * in_linears + 2 * others) / 1e9)
### END SOLUTION
check("q3_3", prediction)

# %% [markdown] tags=["en", "hint-q3_3"]
"""
(1) Who shares an absmax with whom? Section 8. (2) Section 11 says what stays in 16 bits.
---
(1) A row of B holds four whole blocks, so no block mixes rows; in A every block has its outlier. (2) Two terms: linears at 4.127 bits, the rest at 16 bits; a byte has 8 bits, a GB 1e9 bytes.
---
("A", (4.127 / 8 * eight.linear_params() + 2 * (eight.n_params - eight.linear_params())) / 1e9), a bit above 6.
"""

# %% [markdown] tags=["zh", "hint-q3_3", "of-9ff822ec"]
"""
（1）谁和谁共用一个 absmax？看第 8 部分。（2）第 11 部分说了哪些仍是 16 比特。
---
（1）B 的一行正好是四个完整的块，没有哪个块跨行；A 的每个块里都有离群值。（2）两项：线性层按 4.127 比特，其余按 16 比特；1 字节 8 比特，1 GB 是 1e9 字节。
---
("A", (4.127 / 8 * eight.linear_params() + 2 * (eight.n_params - eight.linear_params())) / 1e9)，比 6 多一点。
"""

# %% [markdown] tags=["en"]
"""
**q3_4 (design).** A pruned layer looks like nothing that NF4 was made for. Below is its histogram, in blocks of 64. Give a list of 16 different levels in [−1, 1], with −1, 0 and 1 among them (zeros must stay zeros, the absmax must survive), whose squared error on these weights is at most *half* of NF4's. You may place levels by eye, write your own Lloyd iteration, or use `sample_levels` of `labkit.theory.normal_blocks`.
"""

# %% [markdown] tags=["zh", "of-410a361a"]
"""
**q3_4（设计）** 一个剪枝过的层，和 NF4 的设想完全不同。下面是它按 64 分块后的直方图。请给出 16 个不同的量化级，都在 [−1, 1] 内，其中必须有 −1、0 和 1（零要保持为零，absmax 要原样保留），使这些权重的平方误差不超过 NF4 的*一半*。可以凭眼睛摆放，可以自己写 Lloyd 迭代，也可以用 `labkit.theory.normal_blocks` 里的 `sample_levels`。
"""

# %%
from labkit.page.questions.q03_samples import pruned_weights

pruned = pruned_weights()  # (1024, 64): one block a row
seen = view(pruned, code="nf4", block_size=64)
labkit.show(levels_figure({"NF4": seen}), alt="A tall hump at zero, two wide humps; NF4's levels as lines")
my_levels = ...
### BEGIN SOLUTION
from labkit.theory.normal_blocks import sample_levels

size = pruned.abs().amax(1, keepdim=True)
fitted = sample_levels(pruned / size, (size**2).expand_as(pruned))
for demanded in (-1.0, 0.0, 1.0):
    fitted[(fitted - demanded).abs().argmin()] = demanded
my_levels = fitted.tolist()
### END SOLUTION
check("q3_4", my_levels)

# %% [markdown] tags=["en", "hint-q3_4"]
"""
Where are the weights? About five or six levels belong near zero, very close together, and the rest out where the humps are.
---
Lloyd: start anywhere, give each weight its nearest level, move each level to the mean of its weights (counted by absmax squared), repeat. sample_levels(values, weights) does this for normalized values.
---
size = pruned.abs().amax(1, keepdim=True); levels = sample_levels(pruned / size, (size**2).expand_as(pruned)); then set the level nearest to each of -1, 0 and 1 to exactly that.
"""

# %% [markdown] tags=["zh", "hint-q3_4", "of-35e27370"]
"""
权重在哪里？零附近要放五六个靠得很近的量化级，其余放到两个宽峰所在的位置。
---
Lloyd：随便从哪里开始，让每个权重取最近的量化级，再把每个量化级移到它那些权重的平均值（按 absmax 平方加权），反复进行。sample_levels(values, weights) 对归一化后的值做的就是这件事。
---
size = pruned.abs().amax(1, keepdim=True)；levels = sample_levels(pruned / size, (size**2).expand_as(pruned))；再把离 -1、0、1 最近的三个量化级分别改成恰好 -1、0、1。
"""

# %% [markdown] tags=["en"]
"""
**q3_5 (explain).** A friend writes in her report: "In NF4 the model takes a quarter of the memory, computes four times as fast, and fine-tuning repairs the rounding." Correct her in three sentences: what besides the 4-bit indices is stored, in which type the product is computed and where the time goes, and what an adapter can and cannot do about the error. The check only sees that three sentences are there and calls them *handed in*; a person marks what they say.
"""

# %% [markdown] tags=["zh", "of-aafdf4c6"]
"""
**q3_5（解释）** 有同学在报告里写道：“用了 NF4，模型只占四分之一的显存，计算快四倍，舍入误差由微调修复。”请用三句话纠正：除了 4 比特的下标，还存了什么；乘法用什么类型计算，时间花在哪里；适配器对误差能做什么，不能做什么。检查只看有没有三句话，结果是*已提交*；写得对不对由老师批阅。
"""

# %%
explanation = ...
### BEGIN SOLUTION
from labkit.labels import text

explanation = text(
    "Each block of 64 weights also stores its absmax, and embeddings, norms and the LM head stay in 16 bits, so "
    "Qwen3-8B takes 6.07 GB and not a quarter of 16.4. Nothing is multiplied in 4 bits: every forward pass turns "
    "the weights back into the compute type first, which costs time on top of the same product. An adapter of low "
    "rank can lower the loss that the rounding caused, but it cannot restore the weights, because their error has "
    "no low rank and the frozen indices never change.",
    "每 64 个权重还要存一个 absmax，嵌入、归一化和 LM head 仍是 16 比特，所以 Qwen3"
    "-8B 占 6.07 GB，不是 16.4 GB 的四分之一。没有任何乘法用 4 比特计算：每次前向传播都要"
    "先把权重反量化成计算类型，同样的乘法之外还多花一份时间。低秩的适配器可以降低舍入带来的损失，却不能还原权重，"
    "因为误差不是低秩的，冻结的下标也不会再变。",
)
### END SOLUTION
check("q3_5", explanation)

# %% [markdown] tags=["en", "hint-q3_5"]
"""
Section 11 for the memory, section 12 for what is computed, section 10 for the repair.
---
Three wrong parts: constants and what stays in 16 bits; dequantize, then multiply; a frozen weight never changes.
---
Sentence 1: 6.07 GB of 16.38, and why. Sentence 2: dequantize first, so not faster. Sentence 3: an adapter adds a low-rank term; the error of the weights stays where it is.
"""

# %% [markdown] tags=["zh", "hint-q3_5", "of-a3368425"]
"""
显存看第 11 部分，怎么计算看第 12 部分，能不能补回误差看第 10 部分。
---
三处错误：量化常数和仍是 16 比特的部分；先反量化再相乘；冻结的权重不会变。
---
第一句：16.38 GB 变成 6.07 GB，为什么。第二句：先要反量化，所以不会更快。第三句：适配器加上的是一个低秩项，权重本身的误差还在。
"""

# %% [markdown] tags=["en"]
"""
## All of it on one page

The explorer below needs no kernel: choose the code, the block size and double quantization, and see the levels, how often each is used, the exact error on N(0, 1), the bits, and what a whole model takes. A last question without a check: which setting has the fewest bits and still less error than NF4 at block 64?
"""

# %% [markdown] tags=["zh", "of-e805b022"]
"""
## 全部放到一页上

下面这个交互页不需要内核：选择编码、块大小和是否双重量化，就能看到量化级、每级用得多不多、在 N(0, 1) 上的精确误差、比特数，以及整个模型占多少。最后一个不评分的问题：误差比“NF4、块 64”小的设置里，哪一个比特数最少？
"""

# %%
from labkit.page.explorers import nf4_explorer

nf4_explorer()

# %% [markdown] tags=["en"]
"""
## Summary

- NF4 stores, for each weight, a 4-bit place in a table of 16 levels, and for each block of 64 weights its absmax: 4.5 bits, or 4.127 with double quantization, which saves exactly 0.373.
- The levels come from normal quantiles that start at probability 0.9677; equation 4 of the paper gives 15 other values and two infinities.
- With blocks of 64, `labkit.theory.nf4` and bitsandbytes make the same bytes: indices, constants, ties, odd sizes. Infinities are refused here and destroy a block there.
- NF4 is good and not optimal: squared error 0.00846 on N(0, 1) at block 64, Lloyd-Max 0.00762; its indices carry 3.885 of 4 bits; one table for all block sizes is 20 % from the best at 4,096.
- Weight error is not loss. On SmolLM2-135M the code of least weight error costs 0.457 nats, NF4 0.270; codes with an exact zero do better than their error says.
- One outlier costs its 63 neighbours their precision, and nobody else.
- Quantized are the decoder's linears: 84.8 % of Qwen3-8B. Every use dequantizes first: the format saves room, not time.

**Next:** [04 · QLoRA: from base model to assistant](04_qlora_sft.ipynb)

## References

- Dettmers et al., *QLoRA*, 2023, [arXiv:2305.14314](https://arxiv.org/abs/2305.14314): equation 4, double quantization (section 3).
- Yoshida, *NF4 Isn't Information Theoretically Optimal (and that's Good)*, 2023, [arXiv:2306.06965](https://arxiv.org/abs/2306.06965): absmax blocks change the distribution.
- Lloyd, *Least squares quantization in PCM*, 1982; Max, *Quantizing for minimum distortion*, 1960.
- Dettmers et al., *8-bit Optimizers via Block-wise Quantization*, 2021, [arXiv:2110.02861](https://arxiv.org/abs/2110.02861): the dynamic 8-bit map.
- [bitsandbytes](https://github.com/bitsandbytes-foundation/bitsandbytes): `functional.py` (`create_normal_map`, `get_4bit_type`, `quantize_4bit`), `backends/default/ops.py`.
"""

# %% [markdown] tags=["zh", "of-7644b826"]
"""
## 小结

- NF4 为每个权重存一个 4 比特的下标，指向 16 个量化级的表；每 64 个权重再存一个 absmax：共 4.5 比特，用双重量化是 4.127，恰好省 0.373。
- 量化级来自从概率 0.9677 开始的正态分位数；论文的公式 4 给出的是另外 15 个值和两个无穷大。
- 块大小 64 时，`labkit.theory.nf4` 与 bitsandbytes 生成完全相同的字节：下标、常数、正中间的值、奇数大小都一样。无穷大在这里被拒绝，在那里会毁掉一个块。
- NF4 很好，但不是最优：块大小 64 时，在 N(0, 1) 上平方误差 0.00846，Lloyd-Max 是 0.00762；下标只用上 4 比特中的 3.885；同一张表用于所有块大小，到 4,096 时离最优差 20%。
- 权重误差不等于损失。在 SmolLM2-135M 上，权重误差最小的编码损失增加 0.457 nat，NF4 是 0.270；有精确零点的编码，表现比误差所暗示的更好。
- 一个离群值牺牲的是同块 63 个邻居的精度，不影响别人。
- 被量化的是解码层的线性层：占 Qwen3-8B 的 84.8%。每次使用都要先反量化：这种格式省空间，不省时间。

**下一节：**[04 · QLoRA：从基座模型到助手](04_qlora_sft.ipynb)

## 参考文献

- Dettmers 等，*QLoRA*，2023，[arXiv:2305.14314](https://arxiv.org/abs/2305.14314)：公式 4、双重量化（第 3 节）。
- Yoshida，*NF4 Isn't Information Theoretically Optimal (and that's Good)*，2023，[arXiv:2306.06965](https://arxiv.org/abs/2306.06965)：按 absmax 分块会改变分布。
- Lloyd，*Least squares quantization in PCM*，1982；Max，*Quantizing for minimum distortion*，1960。
- Dettmers 等，*8-bit Optimizers via Block-wise Quantization*，2021，[arXiv:2110.02861](https://arxiv.org/abs/2110.02861)：8 比特 dynamic 编码。
- [bitsandbytes](https://github.com/bitsandbytes-foundation/bitsandbytes)：`functional.py`（`create_normal_map`、`get_4bit_type`、`quantize_4bit`），`backends/default/ops.py`。
"""

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
# 06 · DoRA against LoRA

*Is DoRA better, and what does it cost?*

| | |
|---|---|
| Time | 60 to 75 minutes to read and do; the cells take about a minute on the `tiny` profile |
| Needs | lesson 02; lesson 05 helps with section 6 |
| GPU memory | none on `tiny` and `laptop`; on `gpu` about 9 GiB free for section 5, by calculation |

**You will be able to**

1. take a weight apart into lengths and directions, and say whose lengths they are;
2. write DoRA by hand and prove it equal to PEFT, gradients included;
3. say what the detached norm leaves out, and what it saves;
4. run a fair race between two methods, and state its result with an interval;
5. say what DoRA costs in time and memory, and why a method with 0.02 % more parameters can double the peak.
"""

# %% [markdown] tags=["zh", "of-bddb110c"]
"""
# 06 · DoRA 与 LoRA 的较量

*DoRA 更好吗？代价是什么？*

| | |
|---|---|
| 时间 | 读完做完约 60–75 分钟；`tiny` 配置下所有单元格加起来约一分钟 |
| 需要 | 第 02 节；学过第 05 节，第 6 部分会更轻松 |
| 显存 | `tiny` 和 `laptop` 不用；`gpu` 在第 5 部分要有约 9 GiB 空闲（算出来的） |

**学完之后，你能够**

1. 把一个权重矩阵拆成长度和方向，并说清是谁的长度；
2. 亲手写出 DoRA，并证明它与 PEFT 相等，连梯度也相等；
3. 说出不给范数传梯度（detach）丢掉了什么、省下了什么；
4. 让两种方法公平地比一场，并带着区间陈述结果；
5. 说出 DoRA 在时间和显存上的代价，以及只多 0.02% 参数的方法为什么能让峰值翻倍。
"""

# %% [markdown] tags=["en"]
"""
The lecture says of DoRA: "slightly better than standard LoRA on several benchmarks, but the added computation is small". Three guesses before anything runs; type a number in place of each `...`:

- a training step with DoRA takes how many *percent* longer than the same step with LoRA (a model of 135 million parameters, rank 16, 512 tokens, on a CPU)?
- Qwen3-8B in 4 bits, the lecture's dropout of 0.05, one sequence of 2,048 tokens, no gradient checkpointing: how many *percent* higher is the peak memory of QDoRA than that of QLoRA?
- fine-tune with both, each at its own best learning rate: by how many *percent* of LoRA's improvement of the held-out loss is DoRA better? (Negative: worse.)

> **What changes on `laptop` and `gpu`.** Section 5 fine-tunes the profile's own model three times for 24 steps; everything else is small layers, closed formulas and stored results, the same on every machine. `laptop` needs about 10 minutes for section 5 on two CPU cores. `gpu` loads Qwen3-1.7B in float32 there and lets the linears of two of its 28 layers train in the full fine-tuning. With less than about 9 GiB free that is refused: put `%env LABKIT_PROFILE=laptop` into a cell at the very top then.
"""

# %% [markdown] tags=["zh", "of-ae2d42e7"]
"""
讲义这样说 DoRA：“在多项基准上略优于标准 LoRA，但增加的计算开销很小”。运行之前先猜三个数，写在 `...` 的位置：

- 同样一步训练，用 DoRA 比用 LoRA 要多花*百分之几*的时间（1.35 亿参数的模型，秩 16，512 个词元，在 CPU 上）？
- Qwen3-8B 量化成 4 比特，用讲义的 dropout 0.05，一条 2,048 个词元的序列，不开梯度检查点：QDoRA 的峰值显存比 QLoRA 高*百分之几*？
- 两种方法都微调，各用自己最好的学习率：DoRA 对留出集损失的改进，比 LoRA 的改进多*百分之几*？（负数表示更差。）

> **换成 `laptop` 或 `gpu` 会怎样？** 第 5 部分把配置中的模型各微调 24 步，一共三次；其余都是小矩阵、公式和存好的结果，在哪里都一样。`laptop` 的第 5 部分在两个 CPU 核上约需 10 分钟。`gpu` 在那里以 float32 加载 Qwen3-1.7B，全参数微调时只让 28 层中两层的线性层参与训练。空闲显存不到约 9 GiB 会被拒绝，这时请在最上面加一个单元格，写 `%env LABKIT_PROFILE=laptop`。
"""

# %%
import labkit

labkit.predict("p6_1", ..., unit="% longer")
labkit.predict("p6_2", ..., unit="% more memory")
labkit.predict("p6_3", ..., unit="% of LoRA's improvement")

# %% [markdown] tags=["en"]
"""
## 1. A weight has lengths and directions

Take one row of a weight matrix: it makes one output from all the inputs. As an arrow it has a *length* and a *direction*. LoRA adds a push to the arrow, and both change at once. DoRA (Liu et al. 2024) uses the same push for the direction only, and trains the length as a number of its own, the *magnitude* m:

> W' = m · V / |V|, with V = W0 + (alpha/r) · B A

Move the three sliders (they need a running notebook). First the push: LoRA's arrow gets longer as it turns. Then m: only DoRA's arrow answers, along the dotted line. Can you find a push that makes LoRA's arrow longer *without* turning it? And one that turns it without making it longer?
"""

# %% [markdown] tags=["zh", "of-d6b335df"]
"""
## 1. 权重有长度，也有方向

取权重矩阵的一行：它把全部输入变成一个输出。看成一支箭，它有*长度*，也有*方向*。LoRA 推这支箭一把，长度和方向同时变。DoRA（Liu 等，2024）用同样的推力，但只用来改方向；长度则单独作为一个数来训练，叫作*幅度*（magnitude）m：

> W' = m · V / |V|，其中 V = W0 + (alpha/r) · B A

拖动三个滑块（需要在运行中的 notebook 里）。先动推力：LoRA 的箭一边转、一边变长。再动 m：只有 DoRA 的箭有反应，沿着虚线圆走。你能找到一个推力，让 LoRA 的箭变长却*不转*吗？只转而不变长呢？
"""

# %%
from labkit.page.dora_picture import plane_widget

plane_widget()

# %% [markdown] tags=["en"]
"""
An angle of 0 makes it longer without turning; an angle a little above 90 degrees turns it and keeps its length. So LoRA *can* do either: the two are tied to one push, but not to each other. That is worth remembering when the paper says that LoRA cannot.

Now a real weight, with all its rows at once: the key projection of the first layer. Expect one length for each row, and W0 again when length and direction are put together. Look at how much the lengths differ.
"""

# %% [markdown] tags=["zh", "of-d79c5029"]
"""
夹角为 0 时只变长、不转；夹角略大于 90 度时只转、不变长。所以 LoRA 两件事*都*做得到：长度和方向由同一个推力决定，但彼此并没有绑死。论文说 LoRA 做不到的时候，请记得这一点。

再看一个真实的权重，所有行一起看：第一层的 key 投影。预期每一行有一个长度，长度和方向乘起来又得到 W0。请看各行的长度相差多少。
"""

# %%
import torch

from labkit.models.places import runs_folder
from labkit.models.profiles import settled_method
from labkit.models.weights import locate
from labkit.training.loading import load_base, load_tokenizer, quiet
from labkit.training.run import adjusted, rows_of

profile = labkit.current_profile()
weights, plain = locate(profile), adjusted(profile, kind="lora", dtype="float32", dropout=0.0, steps=24)
tokenizer = load_tokenizer(weights)
with quiet():
    model = load_base(weights, settled_method(plain), tokenizer=tokenizer)
W0 = model.get_decoder().layers[0].self_attn.k_proj.weight.detach().cpu()  # (out, in)

# %%
m = W0.norm(dim=1)  # (out,)
direction = W0 / m[:, None]  # (out, in), every row of length 1
assert torch.allclose(m[:, None] * direction, W0)
print(f"k_proj {tuple(W0.shape)}: {len(m)} lengths from {m.min():.2f} to {m.max():.2f}, mean {m.mean():.2f}")

# %% [markdown] tags=["en"]
"""
## 2. Whose length? The axis question

The lecture writes ‖W0 + BA‖ with a small c, "the norm of each column", and so does the paper. But which way does a matrix lie? The lecture's own formula is h = W0 x: there a *row* makes an output, and a column belongs to an input. PyTorch stores the weight the same way, (out, in). Ask PEFT on a layer that is *not square*, because only there can the two be told apart: look at the size of its magnitude vector.
"""

# %% [markdown] tags=["zh", "of-09992fe6"]
"""
## 2. 谁的长度？轴的问题

讲义写的是 ‖W0 + BA‖ 带下标 c，意思是“每一列的范数”，论文也这么写。可是矩阵是怎么摆的？讲义自己的公式是 h = W0 x：这样摆，*一行*产生一个输出，一列则属于一个输入。PyTorch 也是这样存的，(out, in)。拿一个*不是方阵*的层去问 PEFT，因为只有在这里两者才分得开：请看它的幅度向量有多长。
"""

# %%
from peft import LoraConfig, get_peft_model

base = torch.nn.Linear(W0.shape[1], W0.shape[0], bias=False)
base.weight.data = W0.clone()
theirs = get_peft_model(torch.nn.Sequential(base), LoraConfig(target_modules=["0"], use_dora=True)).base_model.model[0]
their_m = theirs.lora_magnitude_vector["default"].weight
assert torch.equal(their_m, W0.norm(dim=1))
print(f"dim=0, one for each column: {len(W0.norm(dim=0))}; dim=1, one for each row: {len(their_m)}, and that is PEFT's")

# %% [markdown] tags=["en"]
"""
One length for each *output*. The paper's "column" is this row if you store a weight as (in, out); its authors' code takes `dim=1` of a PyTorch weight, as PEFT does. Both the paper's W ∈ R^{d×k} beside B A and the lecture's h = W0 x invite the wrong reading, and public re-implementations have fallen for it (PEFT issue 2348 and NVlabs/DoRA issue 11 discuss it).

The count depends on it. Expect two different totals for Qwen3-8B, and see which one is PEFT's (on the `meta` device, where nothing is computed).
"""

# %% [markdown] tags=["zh", "of-c2e97e95"]
"""
每个*输出*一个长度。论文里的“列”，在权重按 (in, out) 存放时正是这里的行；论文作者的代码对 PyTorch 权重取的是 `dim=1`，和 PEFT 一样。可是论文把 W ∈ R^{d×k} 和 B A 写在一起，讲义又写 h = W0 x，都容易让人读错，公开的复现里也确实有人踩过这个坑（PEFT 的 issue 2348、NVlabs/DoRA 的 issue 11 有讨论）。

参数量也取决于它。预期 Qwen3-8B 会得到两个不同的总数，看看 PEFT 是哪一个（在 `meta` 设备上，什么都不用算）。
"""

# %%
from labkit.models.shapes import shape_of
from labkit.training.ledger import add_adapters, random_model

eight = shape_of("qwen3-8b")
dora = add_adapters(random_model(eight, device="meta"), labkit.Method(kind="dora", rank=32))
theirs = sum(parameter.numel() for name, parameter in dora.named_parameters() if "magnitude" in name)
rows, columns = (eight.n_layers * sum(sizes[place] for sizes in eight.linears().values()) for place in (1, 0))
print(
    f"one for each row {rows:,}, one for each column {columns:,}; PEFT {theirs:,}, {theirs / eight.n_params:.3%} of all"
)

# %% [markdown] tags=["en"]
"""
So much for parameters: 1.6 % more than LoRA, 0.02 % of the model. Keep the number for section 7.

**The wrong axis, shown failing.** Take magnitudes as PEFT saves them, one for each output, and apply them along the columns. Expect an error on the layer that is not square. On a square layer there is *no* error: look at how far the weight is off.
"""

# %% [markdown] tags=["zh", "of-bf7e5ebc"]
"""
参数就这么多：比 LoRA 多 1.6%，占模型的 0.02%。请记住这个数，第 7 部分要用。

**看错误的轴怎样失败。** 取 PEFT 存下的幅度，每个输出一个，却沿着列乘上去。预期在不是方阵的层上报错。在方阵上则*不报错*：请看权重偏了多少。
"""


# %%
def by_rows(V, m):
    return (m / V.norm(dim=1))[:, None] * V


def by_columns(V, m):
    return m / V.norm(dim=0) * V


torch.manual_seed(0)
for d_out, d_in in ((48, 64), (64, 64)):
    V, m = torch.randn(d_out, d_in), 6 + 4 * torch.rand(d_out)
    right = by_rows(V, m)
    try:
        print(f"{d_out} x {d_in}: no error, W' is off by {(by_columns(V, m) - right).norm() / right.norm():.0%}")
    except RuntimeError as error:
        print(f"{d_out} x {d_in}: {error}")

# %% [markdown] tags=["en"]
"""
On a square layer the wrong axis loads, runs and trains, and computes another model. In SmolLM2 and Qwen3-8B q_proj and o_proj are square. A test on a square layer proves nothing about the axis; your `dora_forward` below is tested on both.

## 3. The layer by hand

Four lines more than LoRA in lesson 02. Expect the frozen layer's output at the start (up to rounding: m / |V| is a quotient), and three things that train.
"""

# %% [markdown] tags=["zh", "of-5c1d4504"]
"""
在方阵上，错误的轴照样能加载、能运行、能训练，只是算的是另一个模型。SmolLM2 和 Qwen3-8B 的 q_proj、o_proj 都是方阵。在方阵上做的测试说明不了轴的问题；后面你写的 `dora_forward` 两种都要测。

## 3. 亲手写这一层

比第 02 节的 LoRA 多四行。预期起点的输出就是冻结层的输出（只差舍入，因为 m / |V| 是一个商），训练的东西有三样。
"""


# %%
class DoRA(torch.nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        bound = base.in_features**-0.5
        self.lora_A = torch.nn.Parameter(torch.empty(rank, base.in_features).uniform_(-bound, bound))
        self.lora_B = torch.nn.Parameter(torch.zeros(base.out_features, rank))
        self.magnitude = torch.nn.Parameter(base.weight.norm(dim=1))  # (out,)

    def forward(self, x):
        V = self.base.weight + self.scale * self.lora_B @ self.lora_A  # (out, in)
        norm = V.norm(dim=1).detach()  # (out,); section 4 says why detached
        return x @ V.T * (self.magnitude / norm)


layer, x = DoRA(base, rank=8, alpha=16), torch.randn(5, base.in_features)  # x: (tokens, in)
assert torch.allclose(layer(x), base(x), atol=1e-5)
print("trains:", {name: tuple(p.shape) for name, p in layer.named_parameters() if p.requires_grad})

# %% [markdown] tags=["en"]
"""
`labkit.theory.dora` has the same layer with dropout, bias, merging and errors that teach; it adds up in PEFT's order, so that even the last bit can agree. Move B and m away from the start and compare both.
"""

# %% [markdown] tags=["zh", "of-275e1e38"]
"""
`labkit.theory.dora` 里有同样的层，另外还带 dropout、偏置、合并和会教人的报错；它按 PEFT 的次序相加，所以连最后一个比特都能对上。让 B 和 m 离开起点，再比较两者。
"""

# %%
from labkit.theory.dora import DoRALinear

torch.nn.init.normal_(layer.lora_B, std=0.05)
layer.magnitude.data *= 0.8 + 0.4 * torch.rand(len(layer.magnitude))
same = DoRALinear(base, rank=8, alpha=16)
same.load_state_dict(layer.state_dict())
assert torch.allclose(same(x), layer(x), atol=1e-5)
print(same)
print(f"largest difference {(same(x) - layer(x)).abs().max():.1e}")

# %% [markdown] tags=["en"]
"""
**The same as PEFT, bit for bit, gradients included.** Four cases: plain, with a bias, with dropout (the same mask on both sides, hence the seed), on a bfloat16 base. Expect `torch.equal`, which forgives nothing, for the output and for the gradients of A, B, m and x.
"""

# %% [markdown] tags=["zh", "of-6453c3e7"]
"""
**与 PEFT 逐比特相同，梯度也是。** 四种情形：普通、带偏置、带 dropout（两边要抽到同一个掩码，所以设种子）、bfloat16 基座。预期输出以及 A、B、m、x 的梯度都满足 `torch.equal`——它一点误差都不放过。
"""

# %%
from labkit.training.twins import equal_to_peft

for options in ({}, {"bias": True}, {"dropout": 0.1}, {"dtype": torch.bfloat16}):
    found = equal_to_peft(**options)
    assert all(found.values())
    print(f"{options or 'plain'!s:26} equal to the last bit: {', '.join(found)}")

# %% [markdown] tags=["en"]
"""
And a whole model: every linear replaced by ours on one side and by PEFT on the other, with the same A, B and m. Expect equal logits, to the last bit.
"""

# %% [markdown] tags=["zh", "of-032e37e1"]
"""
整个模型也一样：一边把每个线性层换成我们的，另一边交给 PEFT，装上同样的 A、B 和 m。预期 logits 逐比特相等。
"""

# %%
from labkit.training.twins import twin_models

tiny, ids = shape_of("tiny"), torch.arange(32)[None]  # ids: (batch, length)
ours, theirs = twin_models(tiny, labkit.Method(kind="dora", rank=4, dropout=0.0))
assert torch.equal(ours(ids).logits, theirs(ids).logits)
print(f"{tiny.n_layers * 7} linears, logits {tuple(ours(ids).logits.shape)}: equal")

# %% [markdown] tags=["en"]
"""
**A trap on 16-bit bases.** LoRA starts as *exactly* the base model, because B is zero. DoRA should too, because m = |W0|. But PEFT takes the first norms in the base's own type: in bfloat16 they are rounded to 8 significant bits, while the forward pass divides by norms in float32. Look at the second line.
"""

# %% [markdown] tags=["zh", "of-42454cb4"]
"""
**16 位基座上的坑。** LoRA 的起点*恰好*就是基座模型，因为 B 是零。DoRA 也应该是，因为 m = |W0|。可是 PEFT 用基座自己的类型算最初的范数：在 bfloat16 里它们被舍入到 8 位有效数字，而前向传播用 float32 的范数去除。请看第二行。
"""

# %%
from copy import deepcopy

for dtype in (torch.float32, torch.bfloat16):
    off = (DoRALinear(deepcopy(base).to(dtype), rank=8, alpha=16).row_scale() - 1).abs()
    print(f"{dtype!s:15} m / |V| at the start: off by up to {off.max():.1e}, on average {off.mean():.1e}")

# %% [markdown] tags=["en"]
"""
Up to 0.4 %, about as much as one rounding of the weights themselves: harmless for training, but "DoRA starts as the base model" is not exact there, and a test that demands it fails.

**Merging** works as in LoRA: W' is one matrix, so at inference DoRA costs nothing. Undoing it divides by m / |V|, which has to be remembered: from the merged weight alone it cannot be found. Look at what is lost on the way back, in both types.
"""

# %% [markdown] tags=["zh", "of-e2567dc9"]
"""
最多 0.4%，和权重本身舍入一次差不多：对训练无害，但“DoRA 从基座模型出发”在这里并不精确，要求它精确的测试会失败。

**合并**和 LoRA 一样：W' 就是一个矩阵，所以推理时 DoRA 没有额外开销。还原时要除以 m / |V|，这个数必须记住：只看合并后的权重是找不回来的。请看两种类型下，还原一趟丢了多少。
"""

# %%
for dtype in (torch.float32, torch.bfloat16):
    merging = DoRALinear(deepcopy(base).to(dtype), rank=8, alpha=16)
    merging.lora_B.data, merging.magnitude.data = layer.lora_B.data, layer.magnitude.data
    inputs, before = x.to(dtype), merging.base.weight.clone()
    with torch.no_grad():
        apart = merging(inputs)
        merging.merge()
        moved = (merging(inputs) - apart).norm() / apart.norm()
        merging.unmerge()
    print(
        f"{dtype!s:15} outputs differ by {moved:.1e}; W0 comes back off by up to {(merging.base.weight - before).abs().max():.1e}"
    )

# %% [markdown] tags=["en"]
"""
## 4. The norm that gets no gradient

|V| depends on A and B, so the exact gradient has a second path, through the norm. The paper (section 4.3) cuts it: |V| is followed in the forward pass and held constant in the backward pass, and PEFT does the same. What is lost can be written down. With G the gradient of W', the gradient of V is

> exact (equation 6): (m / |V|) · (G − the part of G along V's own row); detached (equation 11): (m / |V|) · G

So the exact gradient never points along the row, because lengthening V changes nothing: the norm divides it out. Expect the assertion to hold; look at how large the part is that only the detached gradient has.
"""

# %% [markdown] tags=["zh", "of-6de23ad3"]
"""
## 4. 不传梯度的范数

|V| 取决于 A 和 B，所以精确的梯度还有第二条路，要穿过范数。论文（4.3 节）把它剪断了：前向传播里 |V| 随时更新，反向传播里当作常数；PEFT 也是这样做的。丢掉了什么，可以写得清清楚楚。设 G 是 W' 的梯度，那么 V 的梯度是

> 精确（公式 6）：(m / |V|) · (G − G 沿 V 自己那一行方向的部分)；detach（公式 11）：(m / |V|) · G

所以精确的梯度从不指向行自己的方向，因为把 V 拉长什么也不会改变：除以范数就抵消了。预期断言成立；请看只有 detach 的梯度才有的那一部分有多大。
"""

# %%
from labkit.theory.dora import direction_gradient

inputs, at_output, update = torch.randn(20, 64), torch.randn(20, 48), 0.05 * torch.randn(48, 64)
small = torch.nn.Linear(64, 48, bias=False)
(held, V), (exact, _) = (direction_gradient(small, update, inputs, at_output, detach=cut) for cut in (True, False))
rows = torch.nn.functional.normalize(V, dim=1)  # (out, in)
along = (held * rows).sum(dim=1, keepdim=True) * rows
assert torch.allclose(exact, held - along, atol=1e-4)
print(f"the part along the row: {along.norm() / held.norm():.0%} of the detached gradient's length")

# %% [markdown] tags=["en"]
"""
Does learning suffer? The test bench of lesson 02: learn a planted update of rank 8, with rank 4. No LoRA of rank 4 can get below one half (Eckart and Young). Three seeds; expect the two DoRA columns to be nearly equal, and look at how they stand to one half.
"""

# %% [markdown] tags=["zh", "of-6d8f46df"]
"""
学习会受影响吗？回到第 02 节的试验台：学会一个事先埋好的秩 8 更新量，只用秩 4。任何秩 4 的 LoRA 都低不过二分之一（Eckart–Young）。三个种子；预期两列 DoRA 几乎相等，再看它们和二分之一的关系。
"""

# %%
from labkit.theory.lora import LoRALinear
from labkit.theory.planted import PlantedTask

print("seed    LoRA   DoRA detached   DoRA exact   (squared distance left, after 200 steps of Adam)")
kinds = ({"make": LoRALinear}, {"make": DoRALinear}, {"make": DoRALinear, "detach_norm": False})
for seed in (0, 1, 2):
    task = PlantedTask(64, 48, rank=8, seed=seed)
    left = [task.train(task.layer(4, 8, seed=seed, **kind), steps=200)[-1] for kind in kinds]
    print(f"{seed:4} {left[0]:7.4f} {left[1]:15.4f} {left[2]:12.4f}")

# %% [markdown] tags=["en"]
"""
Detaching costs nothing here. And DoRA passes *below* LoRA's floor: m rescales the rows of W0 too, and that change is not of low rank. It is DoRA's real extra freedom, and with 48 numbers on 448 it is not for nothing.

Why then detach? Autograd must keep what the backward pass will need. Count it for one layer of 1,024 × 1,024 and 64 tokens. Expect 4.2 MB more for the exact gradient, one float32 matrix of the weight's size. Then look at the last two lines: the same on a 16-bit base, and with the lecture's dropout of 0.05.
"""

# %% [markdown] tags=["zh", "of-4879f72f"]
"""
在这里 detach 没有损失。而且 DoRA 越过了 LoRA 的*下限*：m 也缩放 W0 的各行，这种变化不是低秩的。这才是 DoRA 真正多出来的自由度；不过它也多用了参数：448 个之外又加 48 个，不是白来的。

那为什么要 detach？因为反向传播用得着的东西，autograd 都得留着。数一数一个 1,024 × 1,024 的层、64 个词元要留多少。预期精确梯度多留 4.2 MB，正好是一个权重大小的 float32 矩阵。然后看最后两行：同样的层，16 位基座，再加上讲义的 dropout 0.05。
"""

# %%
from labkit.theory.dora import kept_bytes

wide, half = torch.nn.Linear(1024, 1024, bias=False), torch.nn.Linear(1024, 1024, bias=False).bfloat16()
settings = {"rank": 16, "alpha": 32}
layers = {
    "LoRA": LoRALinear(wide, **settings),
    "DoRA": DoRALinear(wide, **settings),
    "DoRA, exact gradient": DoRALinear(wide, **settings, detach_norm=False),
    "DoRA, bfloat16 base": DoRALinear(half, **settings),
    "DoRA, bfloat16 base, dropout": DoRALinear(half, **settings, dropout=0.05),
}
for name, tried in layers.items():
    tokens = torch.randn(64, 1024, dtype=tried.base.weight.dtype, requires_grad=True)  # as inside a model
    print(f"{name:30} keeps {kept_bytes(tried, tokens) / 1e6:6.2f} MB between forward and backward pass")

# %% [markdown] tags=["en"]
"""
Three things to take to section 7:

- plain DoRA keeps more than LoRA: the gradient of m needs the *outputs* of the layer, and these grow with the tokens;
- the exact gradient would keep a matrix of the weight's size in every layer;
- and with dropout on a 16-bit (or 4-bit) base that matrix comes back *through another door*: PEFT computes W0 x again from the dropped input, in float32, and autograd keeps the float32 copy of W0 for it. The paper saved it, the dropout of 0.05 spends it again.
"""

# %% [markdown] tags=["zh", "of-765a69dd"]
"""
请记住三点，第 7 部分要用：

- 普通的 DoRA 也比 LoRA 留得多：m 的梯度需要这一层的*输出*，而输出随词元数增长；
- 精确梯度会在每一层都多留一个权重大小的矩阵；
- 在 16 位（或 4 位）基座上一开 dropout，这个矩阵又*从另一扇门*回来了：PEFT 要用丢弃后的输入、以 float32 重算一遍 W0 x，autograd 就得为它留着 W0 的 float32 副本。论文省下来的，dropout 0.05 又花掉了。
"""

# %% [markdown] tags=["en"]
"""
## 5. How do the methods move the weights?

The paper's reason for DoRA is a picture: for each query matrix, at four moments of a training, the mean change of direction (1 − cos, equation 4) against the mean change of magnitude (equation 3). Full fine-tuning: correlation −0.62. LoRA: +0.83. DoRA: −0.31, "closer to full fine-tuning". The points came from 6 layers of one vision-language model, one run each.

Make the picture here. Three trainings of 24 steps from the same start and on the same rows; full fine-tuning trains the same linears at a tenth of the learning rate. First what one of them does.
"""

# %% [markdown] tags=["zh", "of-8d1e0194"]
"""
## 5. 三种方法各怎样移动权重？

论文提出 DoRA 的理由是一幅图：对每个 query 矩阵，在训练的四个时刻，画出方向的平均变化（1 − cos，公式 4）和幅度的平均变化（公式 3）。全参数微调的相关系数是 −0.62，LoRA 是 +0.83，DoRA 是 −0.31，“更接近全参数微调”。这些点来自一个视觉语言模型的 6 层，每种方法只训练一次。

我们在这里重画这幅图。三次训练，各 24 步，起点和数据相同；全参数微调训练同样的线性层，学习率取十分之一。先写好其中一次怎么做。
"""

# %%
import gc

from labkit.labels import text
from labkit.page.training_figures import LiveRun
from labkit.training.kept import identity
from labkit.training.recipe import build_trainer, progress_callback
from labkit.training.settle import settled_once
from labkit.training.updates import train_only_linears
from labkit.training.weight_changes import chosen, kept_changes, points, train_watched

force = False  # True trains again what the disk has already
model = model.cpu()  # each of the three loads its own: a GPU's memory is for them
names = list(train_only_linears(model))  # of the linears that train in all three
sized, why = settled_once("lesson06", adjusted(plain, kind="dora"), force=force)  # DoRA needs most of the three
print(text(*why))


def watched(kind, share=1.0):
    run = adjusted(sized, kind=kind, learning_rate=share * profile.learning_rate)
    rows = rows_of(profile, "train")[: run.steps * run.rows_per_step]

    def train():
        gc.collect()  # what the run before left behind
        with quiet():
            bar = progress_callback(LiveRun(steps=run.steps), bar=False)
            fresh = load_base(weights, settled_method(run), tokenizer=tokenizer)
            trainer = build_trainer(fresh, tokenizer, run, rows, runs_folder(), callbacks=[bar])
        if kind == "full":
            train_only_linears(trainer.model)
        return train_watched(trainer, only=names)

    return kept_changes(f"lesson06-{kind}", identity(run, rows), train, force=force)


# %% [markdown] tags=["en"]
"""
`train_watched` calls `train()` and notes, after steps 6, 12, 18 and 24, how far every matrix has moved. Look at the bars: the three losses fall alike. (What is found is kept on the disk. After a restart of the kernel it comes back within seconds, without bars, and the output says so; `force = True` above trains again.)
"""

# %% [markdown] tags=["zh", "of-d55f29f8"]
"""
`train_watched` 调用 `train()`，并在第 6、12、18、24 步之后记下每个矩阵移动了多少。请看进度条：三次的损失下降得差不多。（结果存在磁盘上。重启内核之后，几秒内就能取回，不再出现进度条，输出里会说明；把上面的 `force` 改成 `True`，就会重新训练。）
"""

# %%
moved = {"full": watched("full", share=0.1), "lora": watched("lora"), "dora": watched("dora")}

# %% [markdown] tags=["en"]
"""
Now the paper's points, those of the query matrices. Look at the slopes of the three lines: which of them falls?
"""

# %% [markdown] tags=["zh", "of-21c916d0"]
"""
下面是论文画的那些点，也就是 query 矩阵的点。请看三条直线的斜率：哪一条是下降的？
"""

# %%
from labkit.page.dora_figures import moves
from labkit.theory.dora import correlate

said = ", ".join(f"{kind} {correlate(chosen(changes, 'q_proj')).r:+.2f}" for kind, changes in moved.items())
drawn = {kind: points(changes, "q_proj") for kind, changes in moved.items()}
labkit.show(moves(drawn), alt=f"Change of magnitude by change of direction, three methods; correlations: {said}")
print(said)

# %% [markdown] tags=["en"]
"""
The sign does not come back: here all three rise. Of course they do: a training moves *both* numbers away from zero, so points of several moments lie on a rising line whatever the method. (In the paper the learning rates were high enough for the points of the four moments to lie on top of each other.) Fairer: all seven kinds of linears, the last moment only, and lengths relative to what they were, because a long row moves farther than a short one. Look at each column from top to bottom; the brackets are 95 % intervals that take the points as independent, which flatters them.
"""

# %% [markdown] tags=["zh", "of-b22622aa"]
"""
符号没有重现：这里三条都是上升的。这并不奇怪：训练会让*两个*数都离开零，把几个时刻的点放在一起，无论哪种方法都会排成一条上升的线。（论文里学习率够高，四个时刻的点几乎叠在一起。）更公平的做法是：七种线性层都算，只看最后一个时刻，长度取相对变化，因为长的行比短的行移动得远。请逐列从上往下看；括号里是 95% 区间，它假设各点相互独立，所以偏乐观。
"""

# %%
print(f"{'':6} {'all linears, all moments':32} {'all linears, last moment':32} last moment, relative lengths")
for kind, changes in moved.items():
    last = chosen(changes, last=True)
    ties = correlate(chosen(changes)), correlate(last), correlate(last, relative=True)
    print(f"{kind:6}", *(f"{tie!s:32}" for tie in ties))

# %% [markdown] tags=["en"]
"""
On `tiny` the *order* of the paper comes back at the last moment: LoRA ties length and direction together (+0.80), full fine-tuning does not (−0.18), and DoRA lies between (+0.02). The paper's negative *signs* do not: both of those intervals hold zero. And where the points of all moments are thrown together, as in the paper, the numbers are +0.87, +0.37 and +0.53. A correlation depends on what you put into it.

One run each, four layers: too little to settle anything. So the same was measured on SmolLM2-135M, all linears of 30 layers, three seeds of 12 steps (`benchmarks/dora_correlation.py`; 2 cores of an AMD EPYC, 2026-11-25). LoRA stands apart again: at the last moment it has +0.26 to +0.29, full fine-tuning −0.07 to −0.01, DoRA −0.08 to +0.01, and in every run the intervals of the last two hold zero. With *relative* lengths all three are high: DoRA +0.93 to +0.94, LoRA +0.88 to +0.90, full fine-tuning +0.82 to +0.84. That LoRA stands apart is no accident of a tiny model, but it holds for absolute lengths only.
"""

# %% [markdown] tags=["zh", "of-1aa918cb"]
"""
在 `tiny` 上，只看最后一个时刻，论文的*次序*重现了：LoRA 把长度和方向绑在一起（+0.80），全参数微调没有（−0.18），DoRA 在两者之间（+0.02）。但论文的*负号*没有重现：后两个区间都包含零。而像论文那样把所有时刻的点放在一起，得到的是 +0.87、+0.37 和 +0.53。一个相关系数是多少，取决于你往里放了什么。

每种方法只跑了一次，只有四层，什么也定不下来。所以又在 SmolLM2-135M 上做了同样的测量：30 层的全部线性层，三个种子，各训练 12 步（`benchmarks/dora_correlation.py`；2 个 AMD EPYC 核心，2026-11-25）。LoRA 还是与众不同：最后一个时刻，它是 +0.26 到 +0.29，全参数微调是 −0.07 到 −0.01，DoRA 是 −0.08 到 +0.01，后两者的区间每次都包含零。换成*相对*长度，三种方法都很高：DoRA +0.93 到 +0.94，LoRA +0.88 到 +0.90，全参数微调 +0.82 到 +0.84。可见 LoRA 的与众不同并非小模型上的偶然，但只在看绝对长度时成立。
"""

# %% [markdown] tags=["en"]
"""
## 6. A fair race

**"A paper's table is a fair race."** DoRA's table 1 has LoRA at 74.7 and DoRA at 78.4 for LLaMA-7B. The LoRA row was copied from an earlier paper with its settings; DoRA's learning rate was tuned (2e-4 and 1e-4 were tried). In the same paper's table 15 LoRA falls to 39.5 at rank 4, which nobody else has seen.

A fair race gives both methods the same rows, ranks, targets and budget, *each its own learning rate out of the same list*, and several seeds. The book's grids do that, `data/grids/dora_tiny.toml` and `dora_laptop.toml`, run by `labkit sweep`; the same seed gives both methods the same A and the same order of rows. Each cell has the mean held-out loss and half of its 95 % interval (Student's t over the seeds). Before you compare, find the best learning rate of each column.
"""

# %% [markdown] tags=["zh", "of-8757edc1"]
"""
## 6. 公平地比一场

**“论文的表格就是公平的比赛。”** DoRA 的表 1 里，LLaMA-7B 上 LoRA 是 74.7，DoRA 是 78.4。LoRA 那一行是从更早的论文连同设置一起抄来的，而 DoRA 的学习率是调过的（试了 2e-4 和 1e-4）。同一篇论文的表 15 里，LoRA 在秩 4 时跌到 39.5，别处谁也没见过。

公平的比赛要给两边同样的数据、秩、目标模块和预算，*让双方从同一张清单里各挑自己最好的学习率*，还要跑几个种子。本书的网格 `data/grids/dora_tiny.toml` 和 `dora_laptop.toml` 就是这样，由 `labkit sweep` 运行；种子相同时，两种方法有同样的 A 和同样的数据顺序。每一格是留出集损失的均值和 95% 区间的半宽（对种子用 t 分布）。比较之前，先在每一列里找到最好的学习率。
"""

# %%
from labkit.page.results import print_rows, rows_of_table, shipped

races = [found.where(kind=["lora", "dora"], rank=16) for found in shipped("dora_tiny", "dora_laptop")]
for race in races:
    seeds = {row["settings"]["seed"] for row in race.rows}
    print(f"{race.name}: {len(race)} runs, {len(seeds)} seeds; {race.provenance}")
    print_rows(rows_of_table(race, down="learning_rate", across="kind"))
    print()

# %% [markdown] tags=["en"]
"""
The figure of the first file, without the rates at which training made things worse. Look at how the two lines lie on each other, and at how much the *learning rate* matters beside the method.
"""

# %% [markdown] tags=["zh", "of-dc90dede"]
"""
第一个文件的图，去掉了越训练越差的那些学习率。请看两条线怎样叠在一起，再看和方法相比，*学习率*的影响有多大。
"""

# %%
from labkit.page.results_figures import sweep_figure

top = races[0].rows[0]["heldout_loss_before"]
learned = {cell.at["learning_rate"] for cell in races[0].cells("learning_rate", "kind") if cell.interval.mean < top}
best = {cell.at["kind"]: cell for cell in races[0].best("kind")}
said = ", ".join(
    f"{kind}: best at {cell.at['learning_rate']:g}, loss {cell.interval.mean:.3f}" for kind, cell in best.items()
)
fig = sweep_figure(races[0].where(learning_rate=learned), x="learning_rate", lines="kind")
labkit.show(fig, alt=f"Held-out loss by learning rate, LoRA and DoRA ({said})")
print(said)

# %% [markdown] tags=["en"]
"""
Now the race itself: each at its best learning rate, DoRA minus LoRA, *seed by seed*, because both had the same accidents. `effect` is the mean difference over the standard deviation of the differences (Cohen's d of pairs); the last column puts the difference beside what LoRA's training gained at all. Negative: DoRA is better. (The best rate was chosen on the same seeds, which is a small favour to both.)
"""

# %% [markdown] tags=["zh", "of-7bb661a9"]
"""
现在正式比：双方各用自己最好的学习率，DoRA 减 LoRA，*逐个种子*相减，因为两边遇到的偶然是一样的。`effect` 是差值的均值除以差值的标准差（成对的 Cohen's d）；最后一列把差值和 LoRA 训练的全部收获放在一起看。负数表示 DoRA 更好。（最好的学习率是用同一批种子选的，对双方都是一点小小的照顾。）
"""

# %%
from labkit.page.duel import duel

for race in races:
    found = duel(race)
    mean, low, high = found.percent
    print(f"{race.name}, {found.rates}: {found.difference}, effect {found.difference.effect:+.1f}")
    print(f"    verdict on DoRA: {found.verdict}; {mean:+.1f} % of LoRA's gain ({low:+.1f} to {high:+.1f})")
labkit.reveal("p6_3", -duel(races[0]).percent[0])

# %% [markdown] tags=["en"]
"""
On both models the race is a tie. On `tiny` the difference is 0.000 nats (−0.017 to 0.017, five seeds), on SmolLM2-135M 0.000 (−0.002 to 0.002, three seeds): within 3 % and 0.3 % of what LoRA's training gained. Both methods also have the same best learning rate. Where the rate is too high, neither interval is narrow enough to call a winner. This does not prove that DoRA never helps: the runs are short (32 and 20 steps), the models small, the task one of form. It does show how little is left of a gain when both sides may choose their rate.

**How an unfair race is won.** Fix LoRA at one learning rate that "everybody uses" and give DoRA its best. Look at how large a victory each choice makes, and compare with the interval above.
"""

# %% [markdown] tags=["zh", "of-94e13f81"]
"""
两个模型上都是平局。`tiny` 上的差是 0.000 nat（−0.017 到 0.017，五个种子），SmolLM2-135M 上是 0.000（−0.002 到 0.002，三个种子），分别不到 LoRA 训练收获的 3% 和 0.3%。两种方法最好的学习率也一样。学习率过大时，区间都太宽，分不出胜负。这不能证明 DoRA 永远没用：这些训练很短（32 步和 20 步），模型很小，任务考的又只是形式。但它说明，双方都能自己挑学习率时，优势还剩多少。

**不公平的比赛是怎样赢的。** 把 LoRA 固定在某个“大家都用”的学习率上，让 DoRA 用自己最好的。请看每种选择能造出多大的胜利，再和上面的区间比一比。
"""

# %%
champion = races[0].where(kind="dora", learning_rate=duel(races[0]).rates["dora"])
for cell in races[0].where(kind="lora").cells("learning_rate"):
    rate = cell.at["learning_rate"]
    found = champion.against(races[0].where(kind="lora", learning_rate=rate))
    print(f"LoRA at {rate:<6g}: DoRA wins by {-found.mean:6.3f} nats ({-found.high:.3f} to {-found.low:.3f})")

# %% [markdown] tags=["en"]
"""
Against LoRA at 0.001 DoRA wins by 0.083 nats (0.058 to 0.107), against 0.003 by 0.020 (0.005 to 0.035): both "significant", and both made by the choice of the opponent's learning rate alone.

DoRA's paper sees its largest gains at low ranks. The tiny grid has rank 2 too; expect a small difference, and see whether the interval leaves zero out.
"""

# %% [markdown] tags=["zh", "of-41993ae3"]
"""
对上学习率 0.001 的 LoRA，DoRA 赢 0.083 nat（0.058 到 0.107）；对上 0.003，赢 0.020（0.005 到 0.035）。两个都“显著”，而这全靠替对手挑了学习率。

DoRA 的论文在低秩时收获最大。小网格里也有秩 2；预期差别很小，请看区间是否避开了零。
"""

# %%
low_rank = shipped("dora_tiny")[0].where(kind=["lora", "dora"], rank=2)
print_rows(rows_of_table(low_rank, down="learning_rate", across="kind"))
found = duel(low_rank)
print(f"\nrank 2: {found.difference}, effect {found.difference.effect:+.1f}; verdict on DoRA: {found.verdict}")

# %% [markdown] tags=["en"]
"""
All runs of the two races, to look at yourself. Choose the block, what stands across and which measure; find the setting of `dora_laptop` with the lowest loss, and which others the line under the controls counts beside it.
"""

# %% [markdown] tags=["zh", "of-733176d1"]
"""
两场比赛的全部结果都在这里，自己拨一拨。选实验、横轴和指标；找出 `dora_laptop` 里损失最低的设置，再看控件下面那行字说还有哪些设置与它分不出高下。
"""

# %%
from labkit.page.explorers import results_explorer

results_explorer(*shipped("dora_tiny", "dora_laptop"))

# %% [markdown] tags=["en"]
"""
## 7. What it costs

**"Few extra parameters mean little extra cost."** 0.02 % more parameters; now the time. The two methods take turns in one process, and the ratio is taken within each round, so that whatever else the machine does drops out. First here, on the tiny model; the brackets are a 95 % interval (Student's t on the logarithms).
"""

# %% [markdown] tags=["zh", "of-7e9f28f2"]
"""
## 7. 代价是什么

**“多出来的参数少，代价就小。”** 参数只多 0.02%；现在看时间。两种方法在同一个进程里轮流跑，每一轮内部求比值，这样机器上别的程序的影响就抵消了。先在这里用小模型测；括号里是 95% 区间（对数上的 t 区间）。
"""

# %%
from labkit.training.interleaved import take_turns, time_ratio
from labkit.training.ledger import make_optimizer, train_step


def stepper(kind):
    model = add_adapters(random_model(tiny, dtype="float32"), labkit.Method(kind=kind, rank=8, dropout=0.0))
    ids, optimizer = torch.randint(0, tiny.vocab_size, (2, 128)), make_optimizer(model)
    return lambda: train_step(model, optimizer, ids)


times = take_turns({kind: stepper(kind) for kind in ("lora", "dora")}, rounds=8)
found = time_ratio(times["dora"], times["lora"])
print(f"a step of DoRA takes {found.ratio:.2f} times as long as one of LoRA ({found.low:.2f} to {found.high:.2f})")

# %% [markdown] tags=["en"]
"""
A million parameters are few; the book also holds the measurement on SmolLM2-135M (`benchmarks/dora_cost.py`). Two comparisons deserve a look: how the ratio falls with the *tokens* in a step, because the norm of W0 + B A costs the same for one token as for a thousand; and `dora by hand`, this lesson's layer, which gives PEFT's bits without multiplying by an identity matrix of in × in.
"""

# %% [markdown] tags=["zh", "of-69d26c7a"]
"""
一百万个参数太少；书里还存有 SmolLM2-135M 上的测量（`benchmarks/dora_cost.py`）。有两处值得看：比值怎样随一步里的*词元数*下降，因为求 W0 + B A 的范数，一个词元和一千个词元的代价是一样的；再看 `dora by hand`，也就是本节手写的层，它与 PEFT 逐比特相同，却不用乘一个 in × in 的单位矩阵。
"""

# %%
import json

from labkit.page.dora_figures import cost_ratios
from labkit.paths import data_folder

cost = json.loads((data_folder() / "measurements" / "dora_cost.json").read_text(encoding="utf-8"))
print(f"{cost['model']}, rank {cost['rank']}; {cost['hardware']}; {cost['date']}")
for row in sorted(cost["times"], key=lambda row: (row["method"], row["tokens"])):
    spread = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    print(f"{row['method']:14} beside {row['beside']:14} {row['tokens']:5} tokens: {spread}")
plain_dora = next(row for row in cost["times"] if row["method"] == "dora" and row["tokens"] == 512)
labkit.show(
    cost_ratios(cost["times"]),
    alt=f"Time of a step beside the method without DoRA; 512 tokens: {plain_dora['ratio']:.2f}",
)
labkit.reveal("p6_1", 100 * (plain_dora["ratio"] - 1))

# %% [markdown] tags=["en"]
"""
At 128 tokens a step of DoRA took 1.47 times as long (1.35 to 1.59), at 512 tokens 1.17 (1.14 to 1.21), at 1,024 tokens 1.09 (1.06 to 1.12). With dropout 0.05 on both sides it was 1.95, 1.68 and 1.61. PEFT's own benchmark on a GPU found 1.26. Only with many tokens in a step and without dropout does it come near to little.

Now memory. Lesson 01's closed formula knows DoRA; the setting is your second guess: Qwen3-8B, rank 32, one sequence of 2,048 tokens. Look at the last row, and at what checkpointing does to it.
"""

# %% [markdown] tags=["zh", "of-8472a293"]
"""
128 个词元时，DoRA 一步的时间是 1.47 倍（1.35 到 1.59）；512 个词元时是 1.17 倍（1.14 到 1.21）；1,024 个词元时是 1.09 倍（1.06 到 1.12）。两边都开 dropout 0.05 时，依次是 1.95、1.68 和 1.61 倍。PEFT 自己在 GPU 上的基准是 1.26 倍。只有一步里词元很多、又不开 dropout 时，才接近“很小”。

再看显存。第 01 节的公式也会算 DoRA；设置就是你第二个猜测里的：Qwen3-8B，秩 32，一条 2,048 个词元的序列。请看最后一行，再看梯度检查点对它的作用。
"""

# %%
import itertools

from labkit.theory.memory import predict


def peak_gb(kind, dropout, checkpointing):
    step = labkit.Step(batch=1, seq_len=2048, checkpointing=checkpointing)
    return predict(eight, labkit.Method(kind=kind, rank=32, dropout=dropout), step).peak_allocated_bytes / 1e9


print("peak in GB        dropout   no checkpointing   with checkpointing")
for kinds, dropout in itertools.product((("lora", "dora"), ("qlora", "qdora")), (0.0, 0.05)):
    peaks = [peak_gb(kind, dropout, checkpointing) for checkpointing in (False, True) for kind in kinds]
    print(
        f"{' -> '.join(kinds):16} {dropout:8} {peaks[0]:10.1f} -> {peaks[1]:4.1f} {peaks[2]:11.1f} -> {peaks[3]:4.1f}"
    )
labkit.reveal("p6_2", 100 * (peak_gb("qdora", 0.05, False) / peak_gb("qlora", 0.05, False) - 1))

# %% [markdown] tags=["en"]
"""
The reasons are those of section 4. Without dropout: outputs kept for the gradient of m, at every linear. With dropout: a float32 copy of every weight, 28 GB for the linears of 8B, which is more than four times what QLoRA's 4 bits had saved them to. Checkpointing keeps one layer at a time and makes the difference small. So: **DoRA with dropout 0, and with checkpointing**, whatever the lecture's `lora_dropout=0.05` says.

A formula can be wrong. The dry run (`labkit dryrun`) traces the installed libraries' own step; here are its stored peaks beside the formula.
"""

# %% [markdown] tags=["zh", "of-33ac922a"]
"""
原因正是第 4 部分的那几条。不开 dropout：每个线性层都要为 m 的梯度留下输出。开 dropout：每个权重一份 float32 副本，8B 的线性层就是 28 GB，是 QLoRA 用 4 比特存它们的好几倍。梯度检查点一次只留一层，差别就小了。所以：**用 DoRA 时 dropout 设为 0，并打开梯度检查点**，不管讲义的 `lora_dropout=0.05` 怎么写。

公式也可能错。dry run（`labkit dryrun`）跟踪的是所装库自己的训练步；下面是存好的 dry run 峰值，旁边是公式的结果。
"""

# %%
for row in cost["dry_runs"]:
    if row["model"] == "qwen3-8b" and row["step"].startswith("1 x 2048"):
        formula = peak_gb(row["method"], row["dropout"], False)
        print(
            f"{row['method']:6} dropout {row['dropout']:4}: dry run {row['peak_bytes'] / 1e9:5.1f} GB, formula {formula:5.1f}"
        )

# %% [markdown] tags=["en"]
"""
And really allocated, by the ledger of a step of SmolLM2-135M on a CPU (float32 base, 512 tokens, no checkpointing). Here dropout costs DoRA less: on a float32 base there is no copy to keep.
"""

# %% [markdown] tags=["zh", "of-799488e5"]
"""
再看真实分配的字节：SmolLM2-135M 在 CPU 上一步的账本（float32 基座，512 个词元，不开检查点）。这里 dropout 给 DoRA 带来的代价小一些：float32 的基座不需要另留副本。
"""

# %%
for row in cost["ledger_peaks"]:
    print(f"{row['method']:14} {row['tokens']} tokens: {row['peak_bytes'] / 1e9:5.2f} GB")

# %% [markdown] tags=["en"]
"""
## 8. QDoRA

DoRA on a 4-bit base: W0 is dequantized, and m, A and B train in float32. Two traps of the stack meet here; the book's recipe closes both. TRL casts the adapters of a quantized model to bfloat16 (lesson 04); up to version 1.15 it did so with the magnitudes too, and a magnitude is larger than an entry of A, so its neighbours in bfloat16 lie farther apart. Look at the step that would be needed to move one at all.
"""

# %% [markdown] tags=["zh", "of-4ca0630e"]
"""
## 8. QDoRA

在 4-bit 基座上做 DoRA：先反量化 W0，m、A、B 用 float32 训练。这里会碰到这套工具的两个坑，本书的流程都已避开。TRL 会把量化模型的适配器转成 bfloat16（第 04 节）；在 1.15 及以前，幅度也一起被转，而幅度比 A 的元素大，在 bfloat16 里相邻两个数隔得更远。请看至少要多大的一步才能让它动一下。
"""

# %%
quantized = adjusted(profile, kind="qdora", dropout=0.0)
with quiet():
    fresh = load_base(weights, settled_method(quantized), tokenizer=tokenizer)
    trainer = build_trainer(fresh, tokenizer, quantized, rows_of(profile, "train")[:32], runs_folder())
lengths = [p.detach() for name, p in trainer.model.named_parameters() if "magnitude" in name]
mean = torch.cat(lengths).mean().cpu()
gap = torch.finfo(torch.bfloat16).eps * 2.0 ** mean.log2().floor()
print(f"{len(lengths)} magnitude vectors in {lengths[0].dtype}, mean {mean:.2f}")
print(f"bfloat16 near {mean:.2f}: neighbours {gap:.4f} apart; the profile's learning rate is {profile.learning_rate:g}")

# %% [markdown] tags=["en"]
"""
A step of Adam is about as large as the learning rate, and near the end of a run much smaller: less than half a gap is rounded to nothing. With `gpu`'s 2e-4 *no* step would move a magnitude; it would be LoRA with extra work, and nobody would notice.

Is QDoRA better than QLoRA? The tiny grid again, three seeds.
"""

# %% [markdown] tags=["zh", "of-51531c7f"]
"""
Adam 一步的大小约等于学习率，训练快结束时还要小得多：不到间隔的一半就会被舍入成零。用 `gpu` 配置的 2e-4，*没有*一步能让幅度动一下；那就成了白费功夫的 LoRA，而且没有人会发现。

QDoRA 比 QLoRA 好吗？还是看小网格，三个种子。
"""

# %%
four_bits = [found.where(kind=["qlora", "qdora"]) for found in shipped("dora_tiny", "qdora_laptop")]
for race in four_bits:
    print_rows(rows_of_table(race, down="learning_rate", across="kind"))
    found = duel(race, "qlora", "qdora")
    print(f"{race.name}: {found.difference}; verdict on QDoRA: {found.verdict}\n")

# %% [markdown] tags=["en"]
"""
−0.008 nats with an interval of −0.020 to +0.004 over three seeds: noise again, with a mean that leans DoRA's way, as at rank 2. More seeds could show whether the lean is real; it would be about 1 % of the gain.

## 9. The verdict

What others found: Answer.AI's QDoRA beat QLoRA by 0.19 to 0.23 in exact match on a mathematics task (the paper's section 6.1; large, one run each). PEFT's own benchmark (Llama-3.2-3B, GSM8K, one seed): DoRA 46.9 %, LoRA 47.8 %, with 26 % more time and 10 % more memory; exercise q6_3 asks whether that is a difference at all.

And here: no difference in loss that leaves the noise, 1.1 to 2.2 times the time of a step, and between 22 % (dropout 0, checkpointing) and 162 % (the lecture's dropout, no checkpointing) more peak memory on Qwen3-8B in 4 bits. Two small models and short trainings are no proof about yours. But they put the burden where it belongs: before DoRA is switched on, a race on your own data, with LoRA's learning rate tuned.

Last, the lecture's sentences on DoRA, each with what is computed here or published elsewhere. A ✓ agrees with the lecture.
"""

# %% [markdown] tags=["zh", "of-629ce8e8"]
"""
−0.008 nat，三个种子的区间是 −0.020 到 +0.004：还是噪声，只是均值和秩 2 时一样略偏向 DoRA。更多的种子才能看出这点偏向是不是真的；就算是真的，也只有收获的 1% 左右。

## 9. 结论

别人的结果：Answer.AI 的 QDoRA 在一个数学任务上，完全匹配率比 QLoRA 高 0.19–0.23（论文 6.1 节；差别很大，但各只跑了一次）。PEFT 自己的基准（Llama-3.2-3B，GSM8K，一个种子）：DoRA 46.9%，LoRA 47.8%，多花 26% 的时间和 10% 的显存；练习 q6_3 会问，这到底算不算差别。

本书的结果：损失没有超出噪声的差别；一步的时间是 1.1–2.2 倍；4 比特的 Qwen3-8B 上，峰值显存多 22%（dropout 0、开检查点）到 162%（讲义的 dropout、不开检查点）。两个小模型和短训练不能替你的模型下结论，但举证的责任该由谁来负是清楚的：打开 DoRA 之前，先在自己的数据上比一场，并且把 LoRA 的学习率调好。

最后是讲义关于 DoRA 的几句话，逐条列出本书算出的或别处发表的值。✓ 表示与讲义相符。
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="06")

# %% [markdown] tags=["en"]
"""
## Exercises

**q6_1 (compute).** Write DoRA's forward pass: `x` has the shape (…, in), `W0` is (out, in), `A` (r, in), `B` (out, r), `m` (out,); `scale` is alpha/r. No bias, no dropout; the norm need not be detached. The check tries square layers and others, r = 1, and one input or many.
"""

# %% [markdown] tags=["zh", "of-0f081259"]
"""
## 练习

**q6_1（计算）** 写出 DoRA 的前向传播：`x` 的形状是 (…, in)，`W0` 是 (out, in)，`A` 是 (r, in)，`B` 是 (out, r)，`m` 是 (out,)；`scale` 就是 alpha/r。没有偏置和 dropout，范数也不必 detach。检查会试方阵和非方阵、r = 1、一个或多个输入。
"""

# %%
from labkit import check


def dora_forward(x, W0, A, B, m, scale: float):
    """x times the transpose of m V / |V| with V = W0 + scale B A; shape (..., out)."""
    ### BEGIN SOLUTION
    V = W0 + scale * B @ A
    return x @ V.T * (m / V.norm(dim=1))
    ### END SOLUTION


check("q6_1", dora_forward)

# %% [markdown] tags=["en", "hint-q6_1"]
"""
Section 3, the forward of the layer by hand; section 2 says whose length m is.
---
V = W0 + scale * B @ A is (out, in). One norm for each row: V.norm(dim=1), (out,). Scaling the outputs is the same as scaling the rows.
---
V = W0 + scale * B @ A; return x @ V.T * (m / V.norm(dim=1))
"""

# %% [markdown] tags=["zh", "hint-q6_1", "of-b0812891"]
"""
看第 3 部分手写的 forward；第 2 部分说了 m 是谁的长度。
---
V = W0 + scale * B @ A 是 (out, in)。每一行一个范数：V.norm(dim=1)，形状 (out,)。缩放输出就等于缩放各行。
---
V = W0 + scale * B @ A; return x @ V.T * (m / V.norm(dim=1))
"""

# %% [markdown] tags=["en"]
"""
**q6_2 (predict).** To find B A, PEFT's DoRA multiplies an identity matrix of in × in by A and then by B, in float32, in every forward pass. How large is that identity for `down_proj` of Qwen3-8B, in MB? Within 1 % is right. (`eight.linears()` has the sizes.)
"""

# %% [markdown] tags=["zh", "of-745cf1fa"]
"""
**q6_2（预测）** 为了求 B A，PEFT 的 DoRA 每次前向传播都用一个 in × in 的 float32 单位矩阵先乘 A 再乘 B。对 Qwen3-8B 的 `down_proj`，这个单位矩阵有多少 MB？误差在 1% 以内算对。（尺寸在 `eight.linears()` 里。）
"""

# %%
identity_mb = ...
### BEGIN SOLUTION
identity_mb = 4 * eight.linears()["down_proj"][0] ** 2 / 1e6
### END SOLUTION
check("q6_2", identity_mb)

# %% [markdown] tags=["en", "hint-q6_2"]
"""
`eight.linears()["down_proj"]` is (in, out). Which of the two does A take in?
---
in x in numbers of 4 bytes; a MB is 1e6 bytes.
---
4 * 12288**2 / 1e6
"""

# %% [markdown] tags=["zh", "hint-q6_2", "of-4946d369"]
"""
`eight.linears()["down_proj"]` 是 (in, out)。A 的输入是其中哪一个？
---
in × in 个数，每个 4 字节；1 MB 是 1e6 字节。
---
4 * 12288**2 / 1e6
"""

# %% [markdown] tags=["en"]
"""
**q6_3 (read a table).** PEFT's benchmark asks 1,319 questions: LoRA answers 47.8 % of them right, DoRA 46.9 %. Take both as independent shares of 1,319. How large is *half the 95 % interval of their difference*, in percentage points? (A share's variance is p (1 − p) / n.) Then compare with the difference of 0.9.
"""

# %% [markdown] tags=["zh", "of-4be40871"]
"""
**q6_3（读表）** PEFT 的基准问 1,319 道题：LoRA 答对 47.8%，DoRA 答对 46.9%。把两者当作 1,319 道题上相互独立的比例。它们*差值的 95% 区间的半宽*是多少个百分点？（一个比例的方差是 p (1 − p) / n。）算完再和差值 0.9 比一比。
"""

# %%
half_width_points = ...
### BEGIN SOLUTION
half_width_points = 100 * 1.96 * (0.478 * 0.522 / 1319 + 0.469 * 0.531 / 1319) ** 0.5
### END SOLUTION
check("q6_3", half_width_points)

# %% [markdown] tags=["en", "hint-q6_3"]
"""
The variance of a difference of two independent numbers is the *sum* of their variances.
---
Add p (1 − p) / 1319 of both, take the root, times 1.96, times 100.
---
100 * 1.96 * (0.478 * 0.522 / 1319 + 0.469 * 0.531 / 1319) ** 0.5
"""

# %% [markdown] tags=["zh", "hint-q6_3", "of-452638c9"]
"""
两个独立的数，差的方差等于方差之*和*。
---
两边的 p (1 − p) / 1319 相加，开平方，乘 1.96，再乘 100。
---
100 * 1.96 * (0.478 * 0.522 / 1319 + 0.469 * 0.531 / 1319) ** 0.5
"""

# %% [markdown] tags=["en"]
"""
**q6_4 (decide).** Write the judge of a race: `lora` and `dora` are lists of held-out losses, the same place is the same seed. Return `"LoRA"`, `"DoRA"` or `"noise"`: a winner only if the 95 % interval of the mean difference, seed by seed, by Student's t, leaves zero out. One seed decides nothing. `scipy.stats.t.ppf(0.975, n - 1)` is the quantile.
"""

# %% [markdown] tags=["zh", "of-4fa35f96"]
"""
**q6_4（判断）** 写一个比赛的裁判：`lora` 和 `dora` 是两串留出集损失，同一位置是同一个种子。返回 `"LoRA"`、`"DoRA"` 或 `"noise"`：只有逐个种子的差值，其均值的 95% t 区间不含零，才判胜者。只有一个种子时什么也判不了。分位数是 `scipy.stats.t.ppf(0.975, n - 1)`。
"""


# %%
def decide(lora: list[float], dora: list[float]) -> str:
    """Which loss is lower beyond the noise of the seeds: "LoRA", "DoRA" or "noise"."""
    ### BEGIN SOLUTION
    from labkit.theory.intervals import t_interval

    found = t_interval([one - two for one, two in zip(lora, dora, strict=True)])
    if found.holds_zero:
        return "noise"
    return "DoRA" if found.mean > 0 else "LoRA"
    ### END SOLUTION


check("q6_4", decide)

# %% [markdown] tags=["en", "hint-q6_4"]
"""
Take the differences of each seed first; their mean and their standard deviation decide, not those of the two lists.
---
mean ± t · s / √n, with s the standard deviation of the differences (n − 1 below) and t = scipy.stats.t.ppf(0.975, n − 1). With n = 1 return "noise".
---
d = [a - b for a, b in zip(lora, dora)]; half = t.ppf(0.975, n - 1) * statistics.stdev(d) / n**0.5; "noise" if abs(mean) <= half, else "DoRA" if mean > 0, else "LoRA"
"""

# %% [markdown] tags=["zh", "hint-q6_4", "of-c33caf03"]
"""
先逐个种子求差；起决定作用的是差值的均值和标准差，不是两串数各自的。
---
均值 ± t · s / √n，其中 s 是差值的标准差（除以 n − 1），t = scipy.stats.t.ppf(0.975, n − 1)。n = 1 时返回 "noise"。
---
d = [a - b for a, b in zip(lora, dora)]；half = t.ppf(0.975, n - 1) * statistics.stdev(d) / n**0.5；abs(均值) <= half 时是 "noise"，否则均值大于 0 是 "DoRA"，小于 0 是 "LoRA"
"""

# %% [markdown] tags=["en"]
"""
**q6_5 (decide and defend).** Your team fine-tunes Qwen3-8B with QLoRA on one 24 GB card and someone proposes to switch on `use_dora=True`. Decide, and defend it in three sentences: one with the measured difference and its interval, one with a cost in time or memory, one saying what evidence would change your mind. The check only sees that three sentences are there; a person marks what they say.
"""

# %% [markdown] tags=["zh", "of-077809c9"]
"""
**q6_5（判断并辩护）** 你的小组在一张 24 GB 的卡上用 QLoRA 微调 Qwen3-8B，有人提议打开 `use_dora=True`。做出决定，并用三句话为它辩护：一句写实测的差别和它的区间，一句写时间或显存上的代价，一句写什么样的证据会让你改变主意。检查只看有没有三句话；写得对不对由老师批阅。
"""

# %%
defence = ...
### BEGIN SOLUTION
from labkit.labels import text

found = duel(races[0]).difference
extra = peak_gb("qdora", 0.0, True) / peak_gb("qlora", 0.0, True) - 1
defence = text(
    f"I leave DoRA off: with both learning rates tuned its loss differs from LoRA's by {found.mean:+.3f} nats, and the "
    f"interval of {found.low:+.3f} to {found.high:+.3f} says how little five seeds can claim about it. It would cost "
    f"{extra:.0%} more peak memory with checkpointing and steps that take 1.3 to 1.6 times as long on our CPU. A race on our "
    "own data with at least three seeds, each method at its own best rate, whose interval leaves zero out by more than "
    "the extra time could buy LoRA in further steps, would change my mind.",
    f"我不打开 DoRA：双方都调过学习率之后，损失之差只有 {found.mean:+.3f} nat，区间 {found.low:+.3f} 到 {found.high:+.3f} "
    f"说明五个种子能断言的很有限。它在开检查点时要多占 {extra:.0%} 的峰值显存，在我们的 CPU 上每步要花 1.3–1.6 倍的时间。"
    "如果在我们自己的数据上，至少三个种子、双方各用最好的学习率，区间不含零，而且差别大于 LoRA 用同样的额外时间多训练几步的收获，我就改变主意。",
)
### END SOLUTION
check("q6_5", defence)

# %% [markdown] tags=["en", "hint-q6_5"]
"""
Section 6 prints the difference with its interval, section 7 the costs.
---
Sentence 1: mean, low and high, and what they allow you to say. Sentence 2: a ratio of time or a peak in GB, with its setting. Sentence 3: which experiment, how many seeds, which outcome.
---
"Not worth it here: the difference is … nats (… to …). It costs …. I would change my mind if …"
"""

# %% [markdown] tags=["zh", "hint-q6_5", "of-76e7cf19"]
"""
第 6 部分打印了差值和区间，第 7 部分有代价。
---
第一句：均值、下限、上限，以及它们允许你说什么。第二句：时间的比值，或以 GB 计的峰值，带上设置。第三句：什么实验、几个种子、出现什么结果。
---
“在这里不值得：差别是 … nat（… 到 …）。它的代价是 …。如果 …，我就改变主意。”
"""

# %% [markdown] tags=["en"]
"""
## Summary

- DoRA trains W' = m · V / |V| with V = W0 + (alpha/r) B A: one magnitude for each *output*, a row of a PyTorch weight. 1,400,832 more parameters on Qwen3-8B, 0.02 %.
- A test on a square layer cannot find the wrong axis: it loads, runs and trains, and computes another model.
- By hand it equals PEFT to the last bit, gradients included. The detached norm leaves out the part of the gradient along the row and saves a matrix of the weight's size in every layer; learning did not suffer.
- With both learning rates tuned neither method wins: 0.000 nats apart on `tiny` (−0.017 to +0.017, five seeds) and on SmolLM2-135M (−0.002 to +0.002, three seeds). Against an untuned LoRA DoRA "wins" by 0.020 to 0.083 nats on `tiny`.
- The paper's correlations depend on what is put in: at the last moment the order (LoRA above DoRA above full fine-tuning) came back on `tiny`, the negative signs did not.
- A step took 1.3 to 1.6 times as long on a CPU without dropout, 1.9 to 2.2 times with it.
- DoRA wants dropout 0 and checkpointing: with dropout on a 16-bit or 4-bit base autograd keeps a float32 copy of every weight.

**Next:** [07 · Spectrum: train less, choose better?](07_spectrum.ipynb)

## References

- Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, 2024, [arXiv:2402.09353](https://arxiv.org/abs/2402.09353): the picture (section 3.2), the layer (4.1), its gradient (4.2), the detached norm (4.3), tables 1 and 15.
- Salimans and Kingma, *Weight Normalization*, 2016, [arXiv:1602.07868](https://arxiv.org/abs/1602.07868): length and direction, trained apart.
- Hu et al., *LLM-Adapters*, 2023, [arXiv:2304.01933](https://arxiv.org/abs/2304.01933): where the LoRA rows of DoRA's table 1 come from.
- PEFT, [method comparison](https://github.com/huggingface/peft/tree/main/method_comparison) and [issue 2348](https://github.com/huggingface/peft/issues/2348) on the axis.
- Cohen, *Statistical Power Analysis for the Behavioral Sciences*, 1988: effect sizes.
"""

# %% [markdown] tags=["zh", "of-d5272f53"]
"""
## 小结

- DoRA 训练的是 W' = m · V / |V|，其中 V = W0 + (alpha/r) B A：每个*输出*一个幅度，也就是 PyTorch 权重的一行。Qwen3-8B 多 1,400,832 个参数，占 0.02%。
- 在方阵上做的测试发现不了错误的轴：它能加载、能运行、能训练，只是算的是另一个模型。
- 手写的层与 PEFT 逐比特相同，梯度也是。给范数 detach，丢掉的是梯度沿着行方向的部分，省下的是每层一个权重大小的矩阵；学习没有受影响。
- 双方都调好学习率，谁也没赢：`tiny` 上相差 0.000 nat（−0.017 到 +0.017，五个种子），SmolLM2-135M 上相差 0.000（−0.002 到 +0.002，三个种子）。在 `tiny` 上对上没调学习率的 LoRA，DoRA 能“赢” 0.020 到 0.083 nat。
- 论文里的相关系数取决于放进去的是什么：只看最后一个时刻，`tiny` 上重现了次序（LoRA 高于 DoRA，DoRA 高于全参数微调），负号没有重现。
- 在 CPU 上，不开 dropout 时一步的时间是 1.3–1.6 倍，开了是 1.9–2.2 倍。
- 用 DoRA 要把 dropout 设为 0，并打开梯度检查点：在 16 位或 4 位基座上开 dropout，autograd 会为每个权重留一份 float32 副本。

**下一节：**[07 · Spectrum：少训练一些，选得更准？](07_spectrum.ipynb)

## 参考文献

- Liu 等，*DoRA: Weight-Decomposed Low-Rank Adaptation*，2024，[arXiv:2402.09353](https://arxiv.org/abs/2402.09353)：那幅图（3.2 节），这一层（4.1），它的梯度（4.2），detach 的范数（4.3），表 1 和表 15。
- Salimans 和 Kingma，*Weight Normalization*，2016，[arXiv:1602.07868](https://arxiv.org/abs/1602.07868)：把长度和方向分开训练。
- Hu 等，*LLM-Adapters*，2023，[arXiv:2304.01933](https://arxiv.org/abs/2304.01933)：DoRA 表 1 中 LoRA 那几行的出处。
- PEFT，[方法比较](https://github.com/huggingface/peft/tree/main/method_comparison)，以及讨论轴的 [issue 2348](https://github.com/huggingface/peft/issues/2348)。
- Cohen，*Statistical Power Analysis for the Behavioral Sciences*，1988：效应量。
"""

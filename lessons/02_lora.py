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
# 02 · LoRA from scratch

*How many parameters does rank 32 on all linear layers of Qwen3-8B train?*

| | |
|---|---|
| Time | 60 to 75 minutes to read and do; the cells take under a minute on the `tiny` profile |
| Needs | lesson 00; lesson 01 helps with sections 5 and 7 |
| GPU memory | none on `tiny` and `laptop`; on `gpu` at least 6.6 GiB free in section 1; with 20 GiB nothing is recomputed (by calculation) |

**You will be able to**

1. say what "low rank" claims about a fine-tuning update, and measure it on a real one;
2. write `W0 x + (alpha/r) B A x` with every shape, and explain each choice: B zero, A random, alpha over r;
3. count the trained parameters of any model, and the size of the file that holds them;
4. say which part of the backward pass LoRA skips, and which not, and what merging costs;
5. tell what rank and alpha do from what they are said to do.
"""

# %% [markdown] tags=["zh", "of-2660fcd1"]
"""
# 02 · 从零实现 LoRA

*给 Qwen3-8B 的所有线性层挂上秩为 32 的 LoRA，要训练多少个参数？*

| | |
|---|---|
| 时间 | 读完做完约 60–75 分钟；`tiny` 配置下所有单元格加起来不到一分钟 |
| 需要 | 第 00 节；学过第 01 节，第 5、7 部分会更轻松 |
| 显存 | `tiny` 和 `laptop` 不用；`gpu` 在第 1 部分至少要空闲 6.6 GiB，有 20 GiB 就不必重算激活值（算出来的） |

**学完之后，你能够**

1. 说清“低秩”对微调的更新量作了什么断言，并在一个真实的更新量上检验它；
2. 写出 `W0 x + (alpha/r) B A x` 和其中每个形状，并解释每个选择：B 为零、A 随机、alpha 除以 r；
3. 数出任何模型要训练的参数量，以及装下它们的文件有多大；
4. 说出 LoRA 的反向传播省掉了哪一部分、没省哪一部分，以及合并的代价；
5. 分清秩和 alpha 真正的作用与流传的说法。
"""

# %% [markdown] tags=["en"]
"""
The lecture's answer to the opening question is "about 40M". Three guesses of your own, before anything runs; type a number in place of each `...`:

- how many *million* parameters does rank 32 on all linear layers of Qwen3-8B train?
- a training step with LoRA does how many *percent* of the arithmetic of a full fine-tuning step?
- fine-tune a model without any low-rank constraint, and take the update of its weight matrices. How many *percent* of the update's energy (the sum of its squared entries) can a matrix of rank 8 hold?

> **What changes on `laptop` and `gpu`.** Sections 1 and 8 fine-tune the profile's own model for 24 steps each; everything else is arithmetic on small layers and takes the same seconds everywhere. `laptop` fine-tunes SmolLM2-135M: with one thread of a busy 2-core machine section 1 took 4 to 5 minutes and section 8 two to two and a half (2026-11-24). `gpu` loads Qwen3-1.7B and, because 16 bytes a weight do not fit a 24 GB card, lets the linears of two of its 28 layers train; section 1 says how, by the memory that is free.
"""

# %% [markdown] tags=["zh", "of-5e57f12c"]
"""
讲义对开头问题的回答是“约 40M”。先别急着运行，自己猜三个数，写在 `...` 的位置：

- 给 Qwen3-8B 的所有线性层挂秩 32 的 LoRA，要训练多少*百万*个参数？
- 用 LoRA 训练一步的运算量，是全参数微调一步的*百分之几*？
- 不加任何低秩约束地微调一个模型，取出各权重矩阵的更新量。一个秩为 8 的矩阵，能装下更新量*百分之几*的能量（能量指所有元素的平方和）？

> **换成 `laptop` 或 `gpu` 会怎样？** 第 1 和第 8 部分各把配置中的模型微调 24 步；其余都是小矩阵上的算术，在哪里都是几秒。`laptop` 微调 SmolLM2-135M：在一台繁忙的双核机器上用一个线程，第 1 部分用了 4–5 分钟，第 8 部分 2–2.5 分钟（2026-11-24）。`gpu` 加载 Qwen3-1.7B；每个权重 16 字节放不进 24 GB 的卡，所以只让 28 层中两层的线性层参与训练，具体怎么放由空闲显存决定，见第 1 部分。
"""

# %%
import labkit

labkit.predict("p2_1", ..., unit="million parameters")
labkit.predict("p2_2", ..., unit="% of a full step's arithmetic")
labkit.predict("p2_3", ..., unit="% of the energy")

# %% [markdown] tags=["en"]
"""
## 1. Low rank as a picture

LoRA stands on one hypothesis: the *change* that fine-tuning makes to a weight matrix is nearly of low rank. Do not believe it; look at one. The next cells fine-tune the profile's model with no low-rank constraint at all: every linear of the decoder layers trains, the rest is frozen. You will see how many weights that are.

Does it fit? A CPU takes the profile as it is. On a GPU the memory that is free decides, before anything is loaded. An update is measured in float32, because 16-bit weights round small steps away. Where a float32 model does not fit (an 8 GB card), the frozen weights are held in float16, and only those that train in float32. Where not even that fits, the cell stops and says what would. Read the last line: what was chosen, and why.
"""

# %% [markdown] tags=["zh", "of-183410e0"]
"""
## 1. 低秩：眼见为实

LoRA 建立在一个假设之上：微调给权重矩阵带来的*变化*接近低秩。先别信，看一个真实的。下面几个单元格微调配置中的模型，不加任何低秩约束：解码层里的每个线性层都训练，其余冻结。请看一共有多少个权重在训练。

放得下吗？在 CPU 上按配置原样运行；在 GPU 上，加载之前先看还有多少空闲显存。更新量要用 float32 来量，因为 16 位的权重会把小步子舍入掉。整个模型用 float32 放不下时（比如 8 GB 的卡），冻结的权重用 float16 存放，只有参与训练的保留 float32。连这样也放不下，单元格就会停下来，并告诉你怎样才放得下。请看最后一行：选了什么，为什么。
"""

# %%
import gc

import torch

from labkit.labels import text
from labkit.models.places import runs_folder
from labkit.models.profiles import settled_method
from labkit.models.shapes import shape_of
from labkit.models.weights import locate
from labkit.page.training_figures import LiveRun
from labkit.theory.selection import selected_params
from labkit.training.evaluate import heldout_loss
from labkit.training.loading import load_base, load_tokenizer, module_path, quiet
from labkit.training.recipe import build_trainer, progress_callback
from labkit.training.run import adjusted, rows_of
from labkit.training.settle import settled_once
from labkit.training.updates import modules_within

force = False  # True settles anew, by what is free now
profile, steps = labkit.current_profile(), 24
modules = modules_within(shape_of(profile.model))  # "0.q_proj", ...: the linears of all layers, or of some
count = selected_params(shape_of(profile.model), modules)
whole = {"kind": "spectrum", "modules": modules, "dtype": "float32"}  # these train whole, the rest is frozen
full = adjusted(profile, **whole, steps=steps, learning_rate=profile.learning_rate / 10)
more = {"dtypes": ("float32", "float16"), "beside_bytes": 8 * count}  # beside it: a copy of what trains, then its SVDs
full, why = settled_once("lesson02", full, force=force, **more)
print(f"{len(modules)} matrices, {count:,} weights train\n{text(*why)}")

# %% [markdown] tags=["en"]
"""
Now the rows, the model, and the trainer of the book's recipe (lesson 04 takes it apart). Look at the element types.
"""

# %% [markdown] tags=["zh", "of-a4af14c3"]
"""
接着准备样本、模型，以及本书训练流程的训练器（第 04 节会把它拆开）。请看两种元素类型。
"""

# %%
weights = locate(profile)
tokenizer = load_tokenizer(weights)
train_rows, heldout_rows = rows_of(profile, "train"), rows_of(profile, "heldout")
print(f"{len(train_rows)} training rows, {len(heldout_rows)} held-out rows")


def trainer_for(run):
    rows = train_rows[: run.steps * run.rows_per_step]
    with quiet():
        bar = progress_callback(LiveRun(steps=run.steps), bar=False)
        model = load_base(weights, settled_method(run), tokenizer=tokenizer)
        return build_trainer(model, tokenizer, run, rows, runs_folder(), callbacks=[bar])

# %%
trainer = trainer_for(full)
model, paths = trainer.model, [module_path(module) for module in modules]  # "layers.0.self_attn.q_proj", ...
linears = {path: model.get_decoder().get_submodule(path) for path in paths}
start = {name: linear.weight.detach().clone() for name, linear in linears.items()}
assert count == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
print(f"{profile.model}: what trains is {start[next(iter(start))].dtype}, the rest {model.dtype}")

# %% [markdown] tags=["en"]
"""
Train, and subtract: what remains is the update, one matrix ΔW of shape (out, in) for each linear. The learning rate is a tenth of the profile's, which is meant for adapters. Look at the held-out loss: the update must be worth looking at.
"""

# %% [markdown] tags=["zh", "of-c1aa6b33"]
"""
训练，然后相减：剩下的就是更新量，每个线性层一个形状为 (out, in) 的矩阵 ΔW。配置里的学习率是给适配器用的，这里取它的十分之一。请看留出集损失：这个更新量得确实有用，才值得研究。
"""

# %%
loss_before, _ = heldout_loss(model, tokenizer, heldout_rows)
with quiet():
    trainer.train()
trainer = None  # its moments make room for what follows
gc.collect()
loss_full, _ = heldout_loss(model, tokenizer, heldout_rows)
updates = {name: linear.weight.detach() - start[name] for name, linear in linears.items()}  # each (out, in)
print(f"held-out loss {loss_before:.3f} -> {loss_full:.3f} nats a token")

# %% [markdown] tags=["en"]
"""
The *singular value decomposition* writes any matrix as a sum of rank-1 pieces, the strongest first: ΔW = σ₁ u₁v₁ᵀ + σ₂ u₂v₂ᵀ + … The first *r* pieces are the closest matrix of rank *r* that there is (Eckart and Young, 1936), and the energy that they keep is σ₁² + … + σᵣ² over the sum of all σ². Here is one real update. Move the slider (it needs a running notebook): at which rank do you begin to mistake the right corner for the left one?
"""

# %% [markdown] tags=["zh", "of-250ba876"]
"""
*奇异值分解*（SVD）把任意矩阵写成一串秩 1 矩阵之和，最强的排在最前：ΔW = σ₁ u₁v₁ᵀ + σ₂ u₂v₂ᵀ + …… 前 *r* 项就是离它最近的秩 *r* 矩阵（Eckart 和 Young，1936），保留的能量是 σ₁² + … + σᵣ² 除以全部 σ² 之和。下面是一个真实的更新量。拖动滑块（需要在运行中的 notebook 里）：到哪个秩，你就分不清右边的角和左边的角了？
"""

# %%
from labkit.page.widgets import rank_widget

ups = [name for name in updates if name.endswith("up_proj")]
rank_widget(updates[ups[len(ups) // 2]], name=f"ΔW of {ups[len(ups) // 2]}")

# %% [markdown] tags=["en"]
"""
Is that a lot? Compare with a matrix of the same shape filled with random numbers, which has no preferred direction. The table shows the mean over all trained matrices. Look at rank 8, your third guess.
"""

# %% [markdown] tags=["zh", "of-f6dfcd4f"]
"""
这算多吗？拿同样形状、填满随机数的矩阵来比，它没有任何偏好的方向。下表是全部训练过的矩阵的平均值。请看秩 8，那是你的第三个猜测。
"""

# %%
from labkit.theory.lora import decompose, mean_energy

parts = {name: decompose(update) for name, update in updates.items()}
noise = [decompose(torch.randn_like(update)) for update in updates.values()]
energy = {rank: mean_energy(parts.values(), rank) for rank in (1, 2, 4, 8, 16, 32, 64)}

# %%
print("rank   real update   random matrix   (mean share of the energy)")
for rank in energy:
    print(f"{rank:4} {energy[rank]:13.1%} {mean_energy(noise, rank):15.1%}")
labkit.reveal("p2_3", 100 * energy[8])

# %% [markdown] tags=["en"]
"""
So the hypothesis is half true. A few directions hold far more than in a random matrix, but the update is *not* of low rank: a long tail remains. On `tiny` rank 8 keeps about 76 %, on `laptop` 41 %.

Is the tail worth anything? Energy is not usefulness. Put the truncated updates back into the model, all matrices at once, and measure the held-out loss: which share of the *improvement* does rank r keep? Expect the second curve to rise much faster than the first; look again at rank 8.
"""

# %% [markdown] tags=["zh", "of-e5304b72"]
"""
所以这个假设只对了一半。少数几个方向占的能量远远多于随机矩阵，但更新量*并不*低秩：后面还拖着一条长尾。秩 8 在 `tiny` 上保留约 76%，在 `laptop` 上是 41%。

这条尾巴有用吗？能量不等于用处。把截断后的更新量放回模型（所有矩阵一起），测留出集损失：秩 r 保住了*改进*的多少？预期第二条曲线比第一条上升得快得多；请再看秩 8。
"""

# %%
@torch.no_grad()
def loss_at_rank(rank):
    for name, linear in linears.items():
        linear.weight.copy_(start[name] + parts[name].truncated(rank))
    return heldout_loss(model, tokenizer, heldout_rows)[0]


gain = {rank: (loss_before - loss_at_rank(rank)) / (loss_before - loss_full) for rank in energy}

# %%
from labkit.page.lora_figures import by_rank

curves = {"energy of the update": list(energy.values()), "improvement of the held-out loss": list(gain.values())}
said = f"rank 8 keeps {energy[8]:.1%} of the energy and {gain[8]:.1%} of the improvement"
labkit.show(by_rank(list(energy), curves, ylabel="share kept"), alt=f"Shares kept by rank: {said}")
print(said)

# %% [markdown] tags=["en"]
"""
That is the honest case for LoRA: not that updates *are* of low rank, but that their useful part is close to it. (A share can pass 100 %: what is cut away was noise.) On `tiny` rank 8 keeps over 99 % of the improvement; on `laptop` 89 %, and rank 64 98 %. Two limits of this picture: 24 steps are a short training, and in long trainings on code and mathematics full fine-tuning moved 10 to 100 times as many directions as LoRA's usual rank (Biderman et al. 2024).

## 2. The layer, shape by shape

LoRA does not compute an SVD. It writes the update as a product of two thin matrices from the beginning and trains those:

> h = W0 x + (alpha / r) · B A x

| | shape | trains |
|---|---|---|
| W0 | (out, in) | no |
| A | (r, in) | yes |
| B | (out, r) | yes |
| x, A x, B A x | (in), (r), (out) for one token | |

PyTorch keeps tokens in rows, so each product is transposed. Expect two equal results: the thin way round through r numbers, and the update as one matrix. Look at how many multiplications each takes for a layer of 4,096 × 4,096.
"""

# %% [markdown] tags=["zh", "of-51a9710d"]
"""
这才是支持 LoRA 的实在理由：不是更新量*就是*低秩的，而是其中有用的部分接近低秩。（比例可以超过 100%：被截掉的恰好是噪声。）在 `tiny` 上，秩 8 保住了 99% 以上的改进；在 `laptop` 上是 89%，秩 64 是 98%。这幅图有两点局限：24 步是很短的训练；在代码和数学的长时间训练中，全参数微调动用的方向数是 LoRA 常用秩的 10 到 100 倍（Biderman 等，2024）。

## 2. 这一层，逐个形状来看

LoRA 并不计算 SVD。它一开始就把更新量写成两个细长矩阵的乘积，直接训练这两个矩阵：

> h = W0 x + (alpha / r) · B A x

| | 形状 | 是否训练 |
|---|---|---|
| W0 | (out, in) | 否 |
| A | (r, in) | 是 |
| B | (out, r) | 是 |
| x、A x、B A x | 每个词元 (in)、(r)、(out) | |

PyTorch 把词元放在行里，所以每个乘积都要转置。预期两种算法结果相等：一种从只有 r 个数的窄路绕过去，另一种先把更新量合成一个矩阵。请看在 4,096 × 4,096 的层上，两者各要多少次乘法。
"""

# %%
W0, alpha = torch.randn(4, 6), 4  # (out, in): not square
A, B = torch.randn(2, 6), torch.randn(4, 2)  # (r, in), (out, r)
x = torch.randn(3, 6)  # (tokens, in)
thin = x @ W0.T + alpha / 2 * (x @ A.T @ B.T)  # (tokens, in) -> (tokens, r) -> (tokens, out)
assert torch.allclose(thin, x @ (W0 + alpha / 2 * B @ A).T, atol=1e-5)
print("x", tuple(x.shape), "-> A x", tuple((x @ A.T).shape), "-> h", tuple(thin.shape))
print(f"multiplications a token: W0 {4096 * 4096:,}, B A as one matrix {4096 * 4096:,}, through r = 16 {16 * 8192:,}")

# %% [markdown] tags=["en"]
"""
Now as a layer, in ten lines. Two choices wait for section 3: A starts uniform on ±1/√in, B starts at zero. Their effect can be seen at once: expect *exactly* the output of the frozen layer, to the last bit.
"""

# %% [markdown] tags=["zh", "of-7f7fc4b9"]
"""
再写成一个层，只要十行。有两个选择留到第 3 部分解释：A 从 ±1/√in 上的均匀分布开始，B 从零开始。它们的效果马上就能看到：输出与冻结的层*完全*相同，一个比特都不差。
"""


# %%
class LoRA(torch.nn.Module):
    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        bound = base.in_features**-0.5
        self.lora_A = torch.nn.Parameter(torch.empty(rank, base.in_features).uniform_(-bound, bound))
        self.lora_B = torch.nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T * self.scale


base = torch.nn.Linear(64, 48, bias=False)
layer, x = LoRA(base, rank=8, alpha=16), torch.randn(5, 64)  # x: (tokens, in)
assert torch.equal(layer(x), base(x))
print("trains:", {name: tuple(p.shape) for name, p in layer.named_parameters() if p.requires_grad})

# %% [markdown] tags=["en"]
"""
`labkit.theory.lora` has the same layer with dropout, merging and errors that teach. Give it the same A and a B that is not zero: equal again. From here on the lesson uses that one.
"""

# %% [markdown] tags=["zh", "of-944e21b2"]
"""
`labkit.theory.lora` 里有同样的层，另外还带 dropout、合并和会教人的报错。给它同样的 A 和一个不为零的 B，结果仍然相等。从这里起就用它。
"""

# %%
from labkit.theory.lora import LoRALinear

torch.nn.init.normal_(layer.lora_B)
same = LoRALinear(base, rank=8, alpha=16)
same.load_state_dict(layer.state_dict())
assert torch.equal(same(x), layer(x))
print(same)

# %% [markdown] tags=["en"]
"""
## 3. Why B is zero, and A is not

The gradient of B contains A, and the gradient of A contains B: ∂L/∂B = scale · G (A x)ᵀ and ∂L/∂A = scale · Bᵀ G xᵀ, where G is the gradient at the output. So there are four ways to start. The test bench for this and the next section: a layer of 64 inputs and 48 outputs must learn a planted update ΔW* of rank 8, with all 64 unit vectors as inputs, so the loss is exactly the distance ‖ΔW − ΔW*‖². Look at the gradients at the first step, and at the distance that the start itself costs.
"""

# %% [markdown] tags=["zh", "of-29b87a2e"]
"""
## 3. 为什么 B 是零，而 A 不是

B 的梯度里有 A，A 的梯度里有 B：∂L/∂B = scale · G (A x)ᵀ，∂L/∂A = scale · Bᵀ G xᵀ，其中 G 是输出处的梯度。于是有四种起点。这一部分和下一部分的试验台是：一个 64 进 48 出的层，要学会一个事先埋好的秩 8 更新量 ΔW*；输入是全部 64 个单位向量，所以损失恰好是距离 ‖ΔW − ΔW*‖²。请看第一步的梯度，以及起点本身带来的偏差。
"""

# %%
from labkit.theory.planted import PlantedTask

task = PlantedTask(64, 48, rank=8)
starts = {"A random, B zero": (1, 0), "A zero, B random": (0, 1), "both zero": (0, 0), "both random": (1, 1)}


def started(a_random, b_random):
    layer = task.layer(8, 16)
    layer.lora_A.data *= a_random
    if b_random:
        torch.nn.init.kaiming_uniform_(layer.lora_B, a=5**0.5)
    return layer


print(task)

# %%
for name, kind in starts.items():
    layer = started(*kind)
    task.loss(layer).backward()
    grad_a, grad_b = layer.lora_A.grad.norm(), layer.lora_B.grad.norm()
    print(f"{name:17} |dL/dA| {grad_a:6.2f}  |dL/dB| {grad_b:6.2f}  distance at the start {task.distance(layer):.2f}")

# %% [markdown] tags=["en"]
"""
- **both zero**: both gradients are zero, now and for ever. A flat line: nothing trains.
- **both random**: the distance is not 1 at the start. The layer computes something else than the pretrained one before it has seen any data.
- **A zero, B random** works too: the product is zero and one gradient is not.

Why then A random and B zero? See the curves, on a logarithmic axis. With this learning rate the usual start is the faster one; at a rate four times as high the other start overshoots in its first step (the last line). Hayou et al. (2024) explain it in wide layers: the usual start tolerates larger learning rates.
"""

# %% [markdown] tags=["zh", "of-4f431c9f"]
"""
- **两个都是零**：两个梯度都是零，永远是零。一条平线：什么也学不到。
- **两个都随机**：起点的距离不是 1。还没看到任何数据，这一层算的就已经不是预训练的那一层了。
- **A 为零、B 随机**也行得通：乘积为零，而其中一个梯度不为零。

那为什么偏偏是 A 随机、B 为零？请看曲线（纵轴是对数）。在这个学习率下，通常的起点学得更快；学习率再大四倍，另一种起点第一步就冲过了头（见最后一行）。Hayou 等（2024）对宽的层作了解释：通常的起点能承受更大的学习率。
"""

# %%
from labkit.page.lora_figures import loss_curves

curves = {name: task.train(started(*kind)) for name, kind in starts.items()}
ends = ", ".join(f"{name}: {curve[-1]:.4f}" for name, curve in curves.items())
labkit.show(loss_curves(curves), alt=f"Distance by step of four starts; after 100 steps {ends}")
overshoot = task.train(started(0, 1), learning_rate=0.04, steps=2)
print("A zero, B random at 0.04, its first steps:", [round(distance, 2) for distance in overshoot])

# %% [markdown] tags=["en"]
"""
The lecture says "Kaiming-uniform" for A. True of the code (loralib and PEFT call `kaiming_uniform_(A, a=√5)`, which is uniform on ±1/√in, the default of `nn.Linear`); the *paper* draws A from a Gaussian. The size matters more than the shape: A x then has entries of about the size of x/√3, whatever the width. Expect 1/√in as the largest entry in every row of the table.
"""

# %% [markdown] tags=["zh", "of-b1eebc3c"]
"""
讲义说 A 用“Kaiming 均匀分布”。代码确实如此（loralib 和 PEFT 都调用 `kaiming_uniform_(A, a=√5)`，也就是 ±1/√in 上的均匀分布，和 `nn.Linear` 的默认值一样）；而*论文*里 A 取自高斯分布。分布的形状不如大小重要：这样一来，不管层有多宽，A x 的元素大小都约为 x/√3。预期表中每一行的最大元素都是 1/√in。
"""

# %%
for d_in in (64, 1024, 4096):
    layer = LoRALinear(torch.nn.Linear(d_in, 8), rank=64, alpha=1)
    largest, low = layer.lora_A.abs().max().item(), torch.randn(100, d_in) @ layer.lora_A.detach().T
    print(f"in {d_in:5}: largest entry of A {largest:.4f}, 1/sqrt(in) {d_in**-0.5:.4f}, size of A x {low.std():.3f}")

# %% [markdown] tags=["en"]
"""
## 4. The scale: why alpha *over r*

B A is a sum of r rank-1 pieces. Without a correction, more pieces make a larger update, and a learning rate that was tuned at one rank would be wrong at the next. One step of Adam shows it: it moves every entry of B by the learning rate, whatever the gradient's size. Three scales for alpha = 16, a fourth for alpha = 2r, learning rate 0.001; look at how much of the distance the first step removes as r grows.
"""

# %% [markdown] tags=["zh", "of-72692ee8"]
"""
## 4. 缩放系数：为什么要*除以 r*

B A 是 r 个秩 1 矩阵之和。如果不作修正，项数越多，更新量越大；在一个秩上调好的学习率，换个秩就不对了。走一步 Adam 就能看出来：不管梯度大小，它都让 B 的每个元素移动一个学习率。比较 alpha = 16 的三种缩放，第四列是 alpha = 2r，学习率 0.001；请看 r 增大时，第一步消除了多少距离。
"""

# %%
print("rank   alpha   alpha/sqrt(r)   alpha/r    2r/r   (% of the distance that one step removes)")
for rank in (1, 4, 16, 64):
    layers = [task.layer(rank, alpha) for alpha in (16 * rank, 16 * rank**0.5, 16, 2 * rank)]
    removed = [100 * (1 - task.train(layer, learning_rate=0.001, steps=1)[-1]) for layer in layers]
    print(f"{rank:4} {removed[0]:7.2f} {removed[1]:15.2f} {removed[2]:9.2f} {removed[3]:7.2f}")

# %% [markdown] tags=["en"]
"""
With alpha alone the first step grows with the rank, 80-fold from r = 1 to r = 64. With alpha/r it hardly changes: that is the whole purpose of the division, "change r without tuning the learning rate again".

Mind the last column, the lecture's advice "alpha = 2r". It keeps the *scale* at 2 for every rank, so the first step grows with r as in the first column. Neither rule is wrong, but "I doubled r" means two different experiments: with alpha kept, more directions at the same pace; with alpha = 2r, more directions and a larger step.

> **rsLoRA** (Kalajdzievski 2023) divides by √r instead. Its argument looks beyond the first step: with alpha/r the adapter learns ever more slowly as r grows, with alpha/√r activations and gradients keep their size at any rank. `LoRALinear(..., use_rslora=True)` and PEFT's `use_rslora=True` do it. Beware: r = 64, alpha = 128 is then a factor of 16, not 2, and wants another learning rate.

**"alpha is a learning rate of its own kind."** It is not a new knob at all. Multiply alpha by 4, halve A's first values and halve the learning rate: expect the *same* loss curve, to six digits. (The paper says so: tuning alpha is roughly tuning the learning rate, if the init is scaled appropriately.)
"""

# %% [markdown] tags=["zh", "of-97a0ceb9"]
"""
只用 alpha，第一步随秩增大，从 r = 1 到 r = 64 增大到 80 倍。用 alpha/r，它几乎不变：这正是除以 r 的全部目的——“换 r 时不必重调学习率”。

再看最后一列，讲义的建议“alpha = 2r”：它让*缩放系数*在任何秩下都等于 2，于是第一步又像第一列那样随 r 增大。两种规则都没错；但同样一句“我把 r 加倍了”，说的是两个不同的实验：alpha 不变时，方向更多、步子一样大；alpha = 2r 时，方向更多、步子也更大。

> **rsLoRA**（Kalajdzievski，2023）改为除以 √r。它看的不止第一步：用 alpha/r，r 越大，适配器学得越慢；用 alpha/√r，激活值和梯度的大小在任何秩下都不变。`LoRALinear(..., use_rslora=True)` 和 PEFT 的 `use_rslora=True` 就是它。小心：这时 r = 64、alpha = 128 的系数是 16 而不是 2，需要另一个学习率。

**“alpha 是另一种学习率。”** 其实它根本不是一个新旋钮。把 alpha 乘以 4，把 A 的初值减半，学习率也减半：预期得到*同一条*损失曲线，六位数字都一样。（论文也这么说：只要相应地缩放初始化，调 alpha 大致就是调学习率。）
"""

# %%
plain, traded = task.layer(8, 16), task.layer(8, 64)
traded.lora_A.data /= 2
curves = task.train(plain, learning_rate=0.004), task.train(traded, learning_rate=0.002)
largest = max(abs(one - other) for one, other in zip(*curves, strict=True))
assert largest < 1e-5
print(f"after 50 steps: {curves[0][50]:.6f} and {curves[1][50]:.6f}; largest difference anywhere {largest:.1e}")

# %% [markdown] tags=["en"]
"""
In practice nobody rescales A, and the trade is only rough. The grid has the loss after 60 steps for 45 pairs of alpha and learning rate; the frame marks the best rate of each alpha. Expect the frames to move left as alpha grows, and nearly equally good values in all rows but the last. The lecture's "fix alpha, then tune the learning rate" is sound for this very reason: tuning both is tuning one thing twice.
"""

# %% [markdown] tags=["zh", "of-4416226d"]
"""
实际使用时没有人去缩放 A，所以这种交换只是大致成立。下面的网格是 45 组 alpha 和学习率各训练 60 步之后的损失，方框标出每个 alpha 的最佳学习率。预期 alpha 越大，方框越往左移，而且除最后一行外，各行的最好成绩差不多。讲义“先固定 alpha，再调学习率”的建议正因此站得住脚：两个都调，等于把同一样东西调了两遍。
"""

# %%
from labkit.page.lora_figures import loss_grid

alphas, rates = (2, 8, 32, 128, 512), [0.0005 * 2**power for power in range(9)]
losses = [[task.train(task.layer(8, alpha), learning_rate=rate, steps=60)[-1] for rate in rates] for alpha in alphas]
best = {alpha: rates[row.index(min(row))] for alpha, row in zip(alphas, losses, strict=True)}
fig = loss_grid(losses, rows={"alpha": alphas}, columns={"learning rate": rates})
labkit.show(fig, alt=f"Loss after 60 steps by alpha and learning rate; the best rate by alpha: {best}")
for alpha, row in zip(alphas, losses, strict=True):
    print(f"alpha {alpha:3}: best rate {best[alpha]:.4f}, loss {min(row):.4f}")

# %% [markdown] tags=["en"]
"""
## 5. Counting

A has r × in numbers, B has out × r: r (in + out) instead of in × out. First the lecture's own example, a layer of 4,096 × 4,096, where its numbers are right. Look at the last row: from which rank on does a "low-rank" pair hold *more* numbers than the matrix?
"""

# %% [markdown] tags=["zh", "of-fee0d1bf"]
"""
## 5. 数参数

A 有 r × in 个数，B 有 out × r 个：一共 r (in + out)，而不是 in × out。先看讲义自己的例子，4,096 × 4,096 的层，这里讲义的数字是对的。请看最后一行：从哪个秩开始，这对“低秩”矩阵的元素反而比原矩阵*还多*？
"""

# %%
for rank in (16, 64, 256, 2048, 4096):
    count = rank * (4096 + 4096)
    print(f"r = {rank:4}: {count:10,} parameters, {count / 4096**2:8.3%} of 16,777,216")

# %% [markdown] tags=["en"]
"""
Half the width already: r = 2,048 costs as much as the matrix. "r = 128 to 256 loses the efficiency", says the lecture; at 256 it is 12.5 % of this layer.

Now whole models, all seven linears of every layer, rank 32. Look at two columns: how far q_proj is from square, and the share of the model, which *falls* as models grow: parameters grow with the square of the width, adapters with the width.
"""

# %% [markdown] tags=["zh", "of-c59eabbb"]
"""
只要宽度的一半：r = 2,048 就和整个矩阵一样大。讲义说“r 为 128–256 时失去效率优势”；实际上 256 只是这一层的 12.5%。

再数整个模型：每层七个线性层，秩 32。请看两列：q_proj 离方阵有多远；以及占模型的比例，它随模型变大而*下降*，因为参数量按宽度的平方增长，适配器只按宽度增长。
"""

# %%
from labkit.models.shapes import CATALOGUE, shape_of
from labkit.theory.lora import lora_param_count

print("model        q_proj in -> out    attention only      all linears   share of the model")
for name in (name for name in CATALOGUE if name.startswith("qwen3")):
    shape = shape_of(name)
    d_in, d_out = shape.linears()["q_proj"]
    attention = lora_param_count(shape, rank=32, targets=("q_proj", "k_proj", "v_proj", "o_proj"))
    every = lora_param_count(shape, rank=32)
    print(f"{name:12} {d_in:6} -> {d_out:4} {attention:17,} {every:16,} {every / shape.n_params:16.2%}")
labkit.reveal("p2_1", lora_param_count(shape_of("qwen3-8b"), rank=32) / 1e6)

# %% [markdown] tags=["en"]
"""
**87,293,952**, not "about 40M". Where does the lecture's number come from? Not from attention only (30.7M). It is close to rank 16, 43.6M. Its "0.2 to 1 % of the parameters" fits the 8B model up to r = 32, but the course model, 1.7B, already trains 2 % at rank 32. Let PEFT count on the real architecture, on the `meta` device, where tensors take no memory:
"""

# %% [markdown] tags=["zh", "of-2f468157"]
"""
是 **87,293,952**，不是“约 40M”。讲义的数从哪里来？不是只算注意力（那是 30.7M）；它接近秩 16 的 43.6M。讲义说“0.2–1% 的参数”，对 8B、r 不超过 32 成立，但课程用的 1.7B 在秩 32 时已经要训练 2%。再让 PEFT 在真实结构上数一遍（`meta` 设备，张量不占内存）：
"""

# %%
from labkit.training.ledger import add_adapters, random_model

eight = shape_of("qwen3-8b")
adapted = add_adapters(random_model(eight, device="meta"), labkit.Method(kind="lora", rank=32))
trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
assert trained == lora_param_count(eight, rank=32)
print(f"PEFT: {trained:,} parameters train")

# %% [markdown] tags=["en"]
"""
What does such an adapter weigh on disk? PEFT saves A and B as they are, in float32 by default. Save one and compare with 4 bytes a parameter: the rest is the header, the names and shapes of the tensors.
"""

# %% [markdown] tags=["zh", "of-e83906b4"]
"""
这样一个适配器在磁盘上有多大？PEFT 把 A 和 B 原样存下，默认 float32。存一个，和每个参数 4 字节比一比：多出来的是文件头，里面是各张量的名字和形状。
"""

# %%
import tempfile
from pathlib import Path

tiny = shape_of("tiny")
with tempfile.TemporaryDirectory() as folder, quiet():
    add_adapters(random_model(tiny), labkit.Method(kind="lora", rank=8)).save_pretrained(folder)
    size_bytes = (Path(folder) / "adapter_model.safetensors").stat().st_size
values_bytes = 4 * lora_param_count(tiny, rank=8)
print(f"file {size_bytes:,} bytes = values {values_bytes:,} + header {size_bytes - values_bytes:,}")


# %% [markdown] tags=["en"]
"""
The same arithmetic to play with: it runs in the page, without a kernel. Set Qwen3-8B, rank 32, all linears, and find 87,293,952 again. Then a question: with attention only (q, k, v, o), between which two ranks of the slider do you find as many parameters? (Its share is of all parameters with the adapters, as PEFT prints it: 1.99 % for the 1.7B model, where the table above has 2.03 % of the base.)
"""

# %% [markdown] tags=["zh", "of-a3b04f97"]
"""
同样的算术，可以动手玩：它在页面里运行，不需要内核。选 Qwen3-8B、秩 32、所有线性层，应当又看到 87,293,952。再想一个问题：如果只给注意力（q、k、v、o）挂适配器，同样多的参数落在滑块的哪两个秩之间？（它的占比是除以连同适配器在内的全部参数，和 PEFT 打印的一样：1.7B 是 1.99%，而上表除以基座，是 2.03%。）
"""

# %%
from labkit.page.explorers import lora_explorer

lora_explorer()

# %% [markdown] tags=["en"]
"""
## 6. The same as PEFT, bit for bit

A layer by hand is worth something when it equals the one that people use. Same A, same B, same input; expect `torch.equal`, which forgives nothing, with dropout and with rsLoRA too. (With dropout, both must draw the same mask, hence the seed.)
"""

# %% [markdown] tags=["zh", "of-8b987935"]
"""
## 6. 与 PEFT 逐比特相同

自己写的层，只有和大家在用的那个相等才算数。同样的 A、B 和输入，预期 `torch.equal` 成立——它一点误差都不放过；带 dropout、带 rsLoRA 也一样。（带 dropout 时，两边要抽到同一个掩码，所以要设种子。）
"""

# %%
from copy import deepcopy

from peft import LoraConfig, get_peft_model

for options in ({}, {"use_rslora": True}, {"dropout": 0.1}):
    ours, outputs = task.layer(4, 8, **options), []
    torch.nn.init.normal_(ours.lora_B)
    names = {"lora_dropout" if name == "dropout" else name: value for name, value in options.items()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["0"], **names)
    theirs = get_peft_model(torch.nn.Sequential(deepcopy(ours.base)), config).base_model.model[0]
    theirs.lora_A["default"].weight.data, theirs.lora_B["default"].weight.data = ours.lora_A.data, ours.lora_B.data
    for module in (ours, theirs):
        torch.manual_seed(1)
        outputs.append(module(x))
    assert torch.equal(*outputs)
    print(f"{options or 'plain'!s:22} equal to the last bit, scale {ours.scale:g}")

# %% [markdown] tags=["en"]
"""
And a whole model: every targeted linear replaced by ours on one side and by PEFT on the other. Look at two things: before training the logits are those of the base model, and with the same A and B in all 28 linears they are PEFT's.
"""

# %% [markdown] tags=["zh", "of-13dfbeca"]
"""
整个模型也一样：一边把每个目标线性层换成我们的，另一边交给 PEFT。请看两点：训练之前，logits 就是基座模型的；28 个线性层都装上同样的 A 和 B 之后，logits 与 PEFT 的完全相同。
"""

# %%
from labkit.theory.lora import add_lora

method, ids = labkit.Method(kind="lora", rank=4, dropout=0.0), torch.arange(32)[None]  # ids: (batch, length)
ours = random_model(tiny, dtype="float32")
theirs, before = add_adapters(deepcopy(ours), method), ours(ids).logits
adapted = add_lora(ours, method)
assert torch.equal(ours(ids).logits, before)
for name, layer in adapted.items():
    other = theirs.base_model.model.get_submodule(name)
    torch.nn.init.normal_(layer.lora_B, std=0.1)
    other.lora_A["default"].weight.data, other.lora_B["default"].weight.data = layer.lora_A.data, layer.lora_B.data
assert torch.equal(ours(ids).logits, theirs(ids).logits)
moved = (ours(ids).logits - before).abs().max().item()
print(f"{len(adapted)} linears: logits equal PEFT's, and moved by up to {moved:.2f} from the base's")

# %% [markdown] tags=["en"]
"""
**"The adapter stays in fp16",** says the lecture's drawing. Look what PEFT does on a 16-bit base: its adapters are float32, and the output is cast back. Then why: the same training three times, with A and B in each type. Expect float32 to reach zero and bfloat16 to get stuck (8 significant bits round small steps away), and float16 to fail in the first step: Adam's eps of 1e-8 is below its smallest number, so it divides by zero.
"""

# %% [markdown] tags=["zh", "of-9693a358"]
"""
讲义的图上写着“**适配器始终是 FP16**”。看看 PEFT 在 16 位基座上怎么做：适配器是 float32，输出再转回去。为什么？把同样的训练做三遍，A 和 B 分别用三种类型。预期 float32 降到零；bfloat16 卡住（8 位有效数字，小的步子被舍入掉）；float16 第一步就失败：Adam 的 eps 是 1e-8，比它能表示的最小数还小，于是除以零。
"""

# %%
half = get_peft_model(torch.nn.Sequential(torch.nn.Linear(64, 48).half()), LoraConfig(target_modules=["0"]))
print("PEFT on a float16 base: adapter", half.base_model.model[0].lora_A["default"].weight.dtype, end=", ")
print("output", half(torch.randn(5, 64).half()).dtype)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    layer = task.layer(8, 16)
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.to(dtype), layer.lora_B.data.to(dtype)
    print(f"A and B in {dtype!s:15} loss after 400 steps {task.train(layer, learning_rate=0.001, steps=400)[-1]:.5f}")

# %% [markdown] tags=["en"]
"""
## 7. Where the gradient goes

"The backward pass goes only through the LoRA parameters", says the lecture. To train the adapters of a low layer, the gradient must come down through all the layers above, and each hands it on as ∂L/∂x = (W0 + scale · B A)ᵀ G. It passes *through* the frozen weight. Only one thing is skipped: ∂L/∂W0 = G xᵀ, the weight's own gradient. Expect the assertion to hold and a missing gradient.
"""

# %% [markdown] tags=["zh", "of-bec840a8"]
"""
## 7. 梯度往哪里走

讲义说“反向传播仅经过 LoRA 参数”。要训练低层的适配器，梯度必须从上面所有层一路传下来，而每一层往下传的是 ∂L/∂x = (W0 + scale · B A)ᵀ G：它*穿过*了冻结的权重。省掉的只有一样：权重自己的梯度 ∂L/∂W0 = G xᵀ。预期断言成立，并且少了一个梯度。
"""

# %%
layer = task.layer(4, 8)
torch.nn.init.normal_(layer.lora_B)
inputs, G = torch.randn(5, 64, requires_grad=True), torch.randn(5, 48)  # (tokens, in), (tokens, out)
layer(inputs).backward(G)
assert torch.allclose(inputs.grad, G @ (layer.base.weight + layer.delta_weight()), atol=1e-4)
print(f"gradients: W0 {layer.base.weight.grad}, A {tuple(layer.lora_A.grad.shape)}, input {tuple(inputs.grad.shape)}")

# %% [markdown] tags=["en"]
"""
So what is saved? A linear layer costs one product forward, and two backward (for x and for W0). LoRA skips one of three: two thirds remain, plus the thin products of A and B. PyTorch can count floating-point operations; on `meta` it counts an 8B model without computing anything. Look at the last column, your second guess.
"""

# %% [markdown] tags=["zh", "of-0eaa7754"]
"""
那么省了多少？一个线性层前向做一次乘积，反向做两次（对 x 一次，对 W0 一次）。LoRA 省掉三次中的一次：剩下三分之二，再加上 A、B 的细长乘积。PyTorch 能数浮点运算；在 `meta` 上，它不用真算就能数 8B 模型。请看最后一列，那是你的第二个猜测。
"""

# %%
from labkit.training.ledger import step_flops

for shape in (shape_of("qwen3-1.7b"), eight):
    whole, part = (step_flops(shape, labkit.Method(kind=kind, rank=32, dropout=0.0)) for kind in ("full", "lora"))
    print(f"{shape.name}: full {whole / 1e12:.1f}, LoRA r = 32 {part / 1e12:.1f} TFLOP for 1,024 tokens: {part / whole:.1%}")
labkit.reveal("p2_2", 100 * part / whole)

# %% [markdown] tags=["en"]
"""
About 70 %, not 1 %, although only 1 to 2 % of the parameters train. (Gradient checkpointing adds the same second forward pass to both.)

**"LoRA makes each step much faster."** Arithmetic is not time. Every adapted linear runs two more products and a few small operations, and in a small model that overhead is all there is. Here are steps of the tiny model on this machine's CPU: expect a ratio near 1 or above it, not 0.7. (On one core of an AMD EPYC, with torch 2.13.0, LoRA took 47 ms and full fine-tuning 36; 2026-11-24.) LoRA saves memory first of all (lesson 01); that can make larger batches possible, and *those* are faster.
"""

# %% [markdown] tags=["zh", "of-0d5001d5"]
"""
约 70%，而不是 1%，尽管训练的参数只占 1%–2%。（梯度检查点给两边都加上同样的第二次前向。）

**“LoRA 让每一步快很多。”** 运算量不等于时间。每个挂了适配器的线性层要多做两次乘积和几个小运算；模型小的时候，时间全花在这些开销上。下面是小模型在本机 CPU 上的一步：预期比值接近 1 甚至更大，而不是 0.7。（在 AMD EPYC 的一个核上，torch 2.13.0，LoRA 用了 47 毫秒，全参数 36 毫秒；2026-11-24。）LoRA 省的首先是显存（第 01 节）；显存省下来，批可以更大，*这*才更快。
"""

# %%
from labkit.training.ledger import step_seconds
from labkit.training.record import hardware

ids = torch.randint(0, tiny.vocab_size, (2, 128))  # (batch, length)
kinds = {"full": lambda model: model, "LoRA r = 8": lambda model: add_adapters(model, labkit.Method(kind="lora", rank=8))}
times = {name: step_seconds(change(random_model(tiny, dtype="float32")), ids) for name, change in kinds.items()}
print(hardware()["cpu"], "·", ", ".join(f"{name} {1e3 * seconds:.0f} ms a step" for name, seconds in times.items()))
print(f"LoRA takes {times['LoRA r = 8'] / times['full']:.2f} times as long as full fine-tuning")

# %% [markdown] tags=["en"]
"""
## 8. Merge and unmerge

After training, W0 + (alpha/r) B A can be added up once, and the layer costs what it cost before: no adapter, no PEFT. Take a real update again: the SVD of section 1 gives the best adapter of rank 8 for it, A = √σ vᵀ and B = u √σ. Merge, compare the outputs, unmerge, compare the weights. Look at how large the rounding is in float32, and in bfloat16, where a weight has 8 significant bits.
"""

# %% [markdown] tags=["zh", "of-3562f06b"]
"""
## 8. 合并与还原

训练之后，可以把 W0 + (alpha/r) B A 一次加好，这一层的开销就和原来一样：没有适配器，也不需要 PEFT。再用一次真实的更新量：第 1 部分的 SVD 给出了它的最佳秩 8 适配器，A = √σ vᵀ，B = u √σ。合并，比较输出；再减回去，比较权重。请看 float32 的舍入有多大，再看 bfloat16——它的一个权重只有 8 位有效数字。
"""

# %%
W0, (A, B) = start[ups[0]], parts[ups[0]].factors(8)  # (out, in), (8, in), (out, 8)
for dtype in (torch.float32, torch.bfloat16):
    base = torch.nn.Linear(A.shape[1], B.shape[0], bias=False, device=A.device, dtype=dtype)
    base.weight.data = W0.to(dtype)
    layer, x = LoRALinear(base, rank=8, alpha=8), torch.randn(16, A.shape[1], device=A.device, dtype=dtype)
    layer.lora_A.data, layer.lora_B.data = A, B
    with torch.no_grad():
        apart, size = layer(x), layer.delta_weight().norm()
        layer.merge()
        moved = (layer(x) - apart).norm() / apart.norm()
        layer.unmerge()
        lost = (layer.base.weight - W0.to(dtype)).norm() / size
    print(f"{dtype}: outputs differ by {moved:.1e}; after unmerging W0 is off by {lost:.1e} of the update")

# %% [markdown] tags=["en"]
"""
In float32, adding and subtracting gives W0 back, here to the last bit. In bfloat16 it does not: keep the adapter file, and the original.

**Into 4 bits.** QLoRA's base is stored in NF4 (lesson 03). Merging "in place" means: dequantize, add, *round to 16 levels again*, and an update is smaller than the distance between two levels. First a short QLoRA training, then the error of three ways to merge, as a share of the update. A figure often met is 19 %, measured once on one adapter; look at what it is here, by kind of linear.
"""

# %% [markdown] tags=["zh", "of-6fe7d4cb"]
"""
在 float32 里，加上再减去能还原 W0，这里连最后一个比特都一样。在 bfloat16 里则不能：请保留适配器文件，也保留原模型。

**合并进 4 比特。** QLoRA 的基座以 NF4 存储（第 03 节）。“就地”合并的意思是：反量化，相加，*再次舍入到 16 个值*；而更新量比相邻两个值的间隔还小。先做一次短的 QLoRA 训练，再看三种合并方式的误差，用更新量的比例表示。常见的说法是 19%，那只是在某一个适配器上测过一次；请看这里各种线性层分别是多少。
"""

# %%
model = linears = updates = noise = None  # room for the next model
gc.collect()
trainer = trainer_for(adjusted(profile, kind="qlora", steps=steps))
with quiet():
    trainer.train()

# %%
from labkit.training.merging import merge_errors

errors = {}
for name, module in trainer.model.get_base_model().named_modules():
    if hasattr(module, "get_delta_weight"):
        errors.setdefault(name.rpartition(".")[2], []).append(merge_errors(trainer.model, name))

# %%
ways = {"into_4_bit": "into 4 bits", "dequantize_first": "dequantize first", "dequantize_first_bfloat16": "... in bfloat16"}
print(f"{'mean over the layers':22}", *(f"{said:>18}" for said in ways.values()))
for name, found in errors.items():
    print(f"{name:22}", *(f"{sum(error[way] for error in found) / len(found):18.2e}" for way in ways))
flat = [error["into_4_bit"] for found in errors.values() for error in found]
print(f"into 4 bits: an error of {min(flat):.0%} to {max(flat):.0%} of the update, mean {sum(flat) / len(flat):.0%}")

# %% [markdown] tags=["en"]
"""
Dequantize, then merge: in float32 the error is the rounding of the type, a hundred thousand times smaller or more. It costs you the 4-bit size. The error of merging into 4 bits is no constant of nature: it is the rounding of NF4 over the size of the update, so small updates lose more. On `tiny` it was 21 to 50 % by layer, 29 % on average. On `laptop`, whose updates are far smaller than the gap between two levels, it was *107 %*: the error is larger than the whole update, and even rounding the merged weights to bfloat16 cost 23 % (24 steps, 2026-11-24). Lesson 04 shows what that does to the held-out loss.

## 9. Which rank? Recovery of a known one

How high a rank does a task need? Usually nobody knows the truth. Here we do: the target update has rank k = 8. Train with every rank, for long enough. Eckart and Young predict the floor: with k equal singular values it is 1 − r/k below k, and 0 from k on. Look at where predicted and trained meet, and at what rank 48 has gained over rank 8.
"""

# %% [markdown] tags=["zh", "of-996b0eb0"]
"""
先反量化再合并，用 float32 时误差就只有类型本身的舍入，至少小十万倍。代价是放弃 4 比特的体积。合并进 4 比特的误差并不是什么自然常数：它是 NF4 的舍入误差除以更新量的大小，所以更新量越小，损失的比例越大。在 `tiny` 上，误差是更新量的 21%–50%，平均 29%。在 `laptop` 上，更新量远小于相邻两个值的间隔，误差是 *107%*：比整个更新量还大；就连把合并后的权重舍入到 bfloat16，也丢掉了 23%（24 步，2026-11-24）。第 04 节会看到这对留出集损失意味着什么。

## 9. 选多大的秩？找回一个已知的秩

一个任务需要多大的秩？通常没有人知道答案。这里我们知道：目标更新量的秩是 k = 8。用每一种秩训练足够久。Eckart–Young 定理预言了损失的下限：k 个奇异值相等时，r 小于 k 的下限是 1 − r/k，从 k 起就是 0。请看预言与训练是否重合，以及秩 48 比秩 8 多得到了什么。
"""

# %%
tried = (1, 2, 4, 6, 8, 12, 16, 32, 48)
floors = [max(0.0, 1 - rank / 8) for rank in tried]
reached = [task.train(task.layer(rank, 2 * rank), steps=300)[-1] for rank in tried]
assert all(abs(floor - loss) < 1e-3 for floor, loss in zip(floors, reached, strict=True))
fig = by_rank(tried, {"trained": reached, "floor, 1 - r/k": floors}, ylabel="loss / loss at the start", true_rank=8)
labkit.show(fig, alt="Loss after training by rank: it falls on the line 1 - r/8 to zero at rank 8 and stays there")
print(*(f"r = {rank}: {loss:.4f}" for rank, loss in zip(tried, reached, strict=True)), sep=", ")

# %% [markdown] tags=["en"]
"""
**"A bigger rank is always better."** With perfect data it is not better, only larger. Real data are few and noisy: now 100 random inputs, and wished outputs with noise of 0.3 on top. Two curves: the loss on the training data, and the distance from the true update on new inputs. Expect the first to fall on and on, and the second to turn round. Where is its minimum?
"""

# %% [markdown] tags=["zh", "of-4940a3d9"]
"""
**“秩越大越好。”** 数据完美时，更大的秩并没有更好，只是更大。真实的数据又少又吵：现在只给 100 个随机输入，目标输出再加上 0.3 的噪声。看两条曲线：训练数据上的损失，以及新输入上与真实更新量的距离。预期前者一直下降，后者会掉头向上。它的最低点在哪里？
"""

# %%
from labkit.theory.lora import fit

generator = torch.Generator().manual_seed(1)
few, new = torch.randn(100, 64, generator=generator), torch.randn(1000, 64, generator=generator)  # (inputs, in)
wished = few @ task.target.T + 0.3 * torch.randn(100, 48, generator=generator)  # what the update should add, and noise
on_few, on_new = [], []
for rank in tried:
    layer = task.layer(rank, 2 * rank)
    on_few.append(fit(layer, few, layer.base(few) + wished, learning_rate=0.01, steps=400)[-1])
    with torch.no_grad():
        wrong, right = new @ (layer.delta_weight() - task.target).T, new @ task.target.T  # (inputs, out)
    on_new.append((wrong.norm() / right.norm()).item() ** 2)

# %%
curves, best = {"training data": on_few, "new inputs": on_new}, tried[on_new.index(min(on_new))]
fig = by_rank(tried, curves, ylabel="loss / loss at the start", true_rank=8)
labkit.show(fig, alt=f"With few noisy data the training loss falls with the rank; on new inputs rank {best} is best")
print(f"new inputs: rank 8 {on_new[tried.index(8)]:.2f}, rank 16 {on_new[tried.index(16)]:.2f}, rank 48 {on_new[-1]:.2f}")

# %% [markdown] tags=["en"]
"""
At rank 48 the adapter is no better on new inputs than no training at all: it has learned the noise. A rank is a capacity, and what it should be depends on the data. The lecture's guide (8–16 for simple tasks, 32 for medium, 64 for complex) is folklore: papers report tasks for which rank 1 suffices (Hu et al. 2021) and others that want 256 (Biderman et al. 2024). Lesson 05 measures it on the course's task, with seeds and intervals.
"""

# %% [markdown] tags=["zh", "of-f12af0e6"]
"""
到秩 48，适配器在新输入上的表现和完全不训练差不多：它学到的是噪声。秩是一种容量，该取多大取决于数据。讲义的指南（简单任务 8–16，中等 32，复杂 64）只是经验之谈：有论文报告秩 1 就够用的任务（Hu 等，2021），也有论文报告需要 256 的任务（Biderman 等，2024）。第 05 节会在课程任务上实测，带种子和置信区间。
"""

# %% [markdown] tags=["en"]
"""
Where the lecture's LoRA section stands: its claims, quoted, each with what is recomputed here or published elsewhere. A ✓ agrees with the lecture. Look at the last column where nothing could be computed: "no source found" is not "wrong", it is a claim that you should not repeat.
"""

# %% [markdown] tags=["zh", "of-552fd61d"]
"""
讲义的 LoRA 部分该怎么看：下面逐条列出它的说法，以及本书重算或别处发表的值。✓ 表示与讲义相符。没法计算的条目，请看最后一列：“没有找到出处”不等于“错误”，而是说这句话不该再转述下去。
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="02")

# %% [markdown] tags=["en"]
"""
## Exercises

**q2_1 (compute).** Write the count for any model: rank `rank` on the linears named in `targets`, in every layer. `shape.linears()` maps a name to (in, out), `shape.n_layers` is the number of layers. The check uses models and targets that this text does not show.
"""

# %% [markdown] tags=["zh", "of-f0256ee8"]
"""
## 练习

**q2_1（计算）** 写一个对任何模型都适用的计数函数：在每一层里，给 `targets` 列出的线性层挂秩为 `rank` 的 LoRA。`shape.linears()` 把名字对应到 (in, out)，`shape.n_layers` 是层数。检查用的模型和目标模块这里没有列出。
"""

# %%
from labkit import check


def lora_param_count(shape, rank: int, targets: tuple[str, ...]) -> int:
    """How many parameters train."""
    ### BEGIN SOLUTION
    sizes = [shape.linears()[name] for name in targets]
    return rank * shape.n_layers * sum(d_in + d_out for d_in, d_out in sizes)
    ### END SOLUTION


check("q2_1", lora_param_count)

# %% [markdown] tags=["en", "hint-q2_1"]
"""
Section 5, its first sentence.
---
Each adapted linear has r x in numbers in A and out x r in B. Add over the targets, then multiply by the layers.
---
return rank * shape.n_layers * sum(d_in + d_out for d_in, d_out in (shape.linears()[name] for name in targets))
"""

# %% [markdown] tags=["zh", "hint-q2_1", "of-91904ede"]
"""
看第 5 部分的第一句话。
---
每个挂适配器的线性层，A 有 r × in 个数，B 有 out × r 个。对目标模块求和，再乘以层数。
---
return rank * shape.n_layers * sum(d_in + d_out for d_in, d_out in (shape.linears()[name] for name in targets))
"""

# %% [markdown] tags=["en"]
"""
**q2_2 (compute).** Write the forward pass: `x` has the shape (…, in), any number of leading sizes; `W0` is (out, in), `A` (r, in), `B` (out, r). The rank is in the shapes. The check tries r = 1, layers that are not square, and one input or many.
"""

# %% [markdown] tags=["zh", "of-9868d59b"]
"""
**q2_2（计算）** 写出前向传播：`x` 的形状是 (…, in)，前面可以有任意多维；`W0` 是 (out, in)，`A` 是 (r, in)，`B` 是 (out, r)。秩可以从形状里读出来。检查会试 r = 1、非方阵的层，以及一个或多个输入。
"""


# %%
def lora_forward(x, W0, A, B, alpha: float):
    """W0 x + (alpha/r) B A x, shape (..., out)."""
    ### BEGIN SOLUTION
    return x @ W0.T + alpha / A.shape[0] * (x @ A.T @ B.T)
    ### END SOLUTION


check("q2_2", lora_forward)

# %% [markdown] tags=["en", "hint-q2_2"]
"""
Section 2, the cell below the table of shapes.
---
PyTorch keeps tokens in rows: W0 x becomes x @ W0.T, and B A x becomes x @ A.T @ B.T. The rank is A.shape[0].
---
return x @ W0.T + alpha / A.shape[0] * (x @ A.T @ B.T)
"""

# %% [markdown] tags=["zh", "hint-q2_2", "of-2a2cdf73"]
"""
看第 2 部分形状表下面的单元格。
---
PyTorch 把词元放在行里：W0 x 写成 x @ W0.T，B A x 写成 x @ A.T @ B.T。秩是 A.shape[0]。
---
return x @ W0.T + alpha / A.shape[0] * (x @ A.T @ B.T)
"""

# %% [markdown] tags=["en"]
"""
**q2_3 (predict).** PEFT saves an adapter of rank 16 on all seven linears of Qwen3-8B, trained with its default types. How large is `adapter_model.safetensors`, in MB? Within 1 % is right, so MB or MiB matters; the header does not.
"""

# %% [markdown] tags=["zh", "of-bf426bd3"]
"""
**q2_3（预测）** 在 Qwen3-8B 的全部七个线性层上挂秩 16 的适配器，用 PEFT 的默认类型训练并保存。`adapter_model.safetensors` 有多少 MB？误差在 1% 以内算对，所以 MB 和 MiB 不能混；文件头可以忽略。
"""

# %%
file_mb = ...
### BEGIN SOLUTION
file_mb = 4 * lora_param_count(eight, 16, tuple(eight.linears())) / 1e6
### END SOLUTION
check("q2_3", file_mb)

# %% [markdown] tags=["en", "hint-q2_3"]
"""
Section 5: the count, and the file of the tiny model.
---
How many parameters, how many bytes each (section 6 says in which type PEFT keeps them), and what is a MB?
---
43,646,976 parameters x 4 bytes / 1e6.
"""

# %% [markdown] tags=["zh", "hint-q2_3", "of-c83f098f"]
"""
看第 5 部分：参数的个数，以及小模型的那个文件。
---
多少个参数，每个多少字节（第 6 部分说了 PEFT 用什么类型），1 MB 又是多少？
---
43,646,976 个参数 × 4 字节 / 1e6。
"""

# %% [markdown] tags=["en"]
"""
**q2_4 (break it, explain).** Break the init: choose `"both zero"`, `"A zero, B random"` or `"both random"`, and run the cell to see its loss curve beside the healthy one, at a learning rate of 0.04. Explain the curve in three sentences: what the layer computes at the start, which gradient is zero and why, and what follows for the first steps. The check only sees that three sentences are there and calls them *handed in*; a person marks what they say.
"""

# %% [markdown] tags=["zh", "of-1bf5568f"]
"""
**q2_4（弄坏它并解释）** 弄坏初始化：从 `"both zero"`、`"A zero, B random"`、`"both random"` 中选一个，运行单元格，看它在学习率 0.04 下的损失曲线，旁边是正常的那条。用三句话解释这条曲线：起点处这一层算的是什么；哪个梯度为零，为什么；接下来的几步会怎样。检查只看有没有三句话，结果是*已提交*；写得对不对由老师批阅。
"""

# %%
broken = ...
explanation = ...
### BEGIN SOLUTION
from labkit.labels import text

broken = "both zero"
explanation = text(
    "With A and B both zero the layer computes exactly what the frozen one computes, so the loss starts at 1 as it "
    "should. The gradient of A contains the factor B and the gradient of B contains the factor A, so both are zero. "
    "Adam divides zero by a small eps and moves nothing, the next step sees the same zeros, and the curve stays flat.",
    "A 和 B 都是零时，这一层算的和冻结的层完全一样，所以损失正常地从 1 开始。A 的梯度里有因子 B，B 的梯度里有因子 A，"
    "因此两个梯度都是零。Adam 用零除以一个很小的 eps，什么也不移动，下一步看到的还是同样的零，于是曲线一直是平的。",
)
### END SOLUTION
if broken is not ...:
    pair = ("A random, B zero", broken)
    curves = {name: task.train(started(*starts[name]), learning_rate=0.04, steps=60) for name in pair}
    ends = ", ".join(f"{name}: {curve[-1]:.3f}" for name, curve in curves.items())
    labkit.show(loss_curves(curves), alt=f"Distance by step; after 60 steps {ends}")
check("q2_4", explanation)

# %% [markdown] tags=["en", "hint-q2_4"]
"""
Section 3: the table of gradients.
---
Look at the two formulas of the gradients: which factor of each is zero at the start? And is B A zero at the start?
---
Sentence 1: B A at the start, so the loss there. Sentence 2: the gradient that has a zero factor. Sentence 3: which matrix moves first, and how far, or why none moves.
"""

# %% [markdown] tags=["zh", "hint-q2_4", "of-ad7327c7"]
"""
看第 3 部分的梯度表。
---
看两个梯度公式：起点处各有哪个因子是零？B A 在起点处是零吗？
---
第一句：起点处的 B A，以及那里的损失。第二句：哪个梯度含有为零的因子。第三句：哪个矩阵先动、动多少，或者为什么都不动。
"""

# %% [markdown] tags=["en"]
"""
## Summary

- LoRA trains h = W0 x + (alpha/r) B A x with A (r, in), B (out, r): r (in + out) parameters a layer. Rank 32 on all linears of Qwen3-8B is 87,293,952, or 349 MB in float32.
- A real update is not of low rank, but its useful part nearly is: rank 8 kept 76 % of the energy and over 99 % of the improvement on `tiny`, 41 % and 89 % on `laptop` (24 steps, 2026-11-24).
- B zero and A random: the layer starts as the frozen one, and one gradient is not zero. Both zero: nothing trains.
- alpha/r keeps the first steps equal across ranks. alpha and the learning rate are one knob: alpha × 4 with half the rate and half of A's start is the same training.
- The backward pass goes through W0; about 70 % of a full step's arithmetic remains. LoRA saves memory, not much time.
- Merge after dequantizing. Merging a short training's update into 4 bits cost an error of 29 % of it on `tiny`, and on `laptop` one larger than the update itself.
- From the true rank on, more rank gains nothing; with few noisy data it loses.

**Next:** [03 · Four bits that look like a normal distribution](03_nf4.ipynb)

## References

- Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685): the method (section 4.1), ranks (section 7).
- Eckart and Young, *The approximation of one matrix by another of lower rank*, Psychometrika 1, 1936.
- Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, 2023, [arXiv:2312.03732](https://arxiv.org/abs/2312.03732): alpha/√r.
- Hayou et al., *The Impact of Initialization on LoRA Finetuning Dynamics*, 2024, [arXiv:2406.08447](https://arxiv.org/abs/2406.08447): B zero or A zero.
- Biderman et al., *LoRA Learns Less and Forgets Less*, 2024, [arXiv:2405.09673](https://arxiv.org/abs/2405.09673): the rank of full fine-tuning's updates; alpha = 2r.
- Schulman et al., *LoRA Without Regret*, Thinking Machines Lab, 2025, [thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/): two thirds of the FLOPs; learning rates.
- PEFT, [LoRA guide](https://huggingface.co/docs/peft/developer_guides/lora).
"""

# %% [markdown] tags=["zh", "of-73290edb"]
"""
## 小结

- LoRA 训练 h = W0 x + (alpha/r) B A x，其中 A 是 (r, in)，B 是 (out, r)：每层 r (in + out) 个参数。Qwen3-8B 所有线性层秩 32 是 87,293,952 个，float32 为 349 MB。
- 真实的更新量并不低秩，但有用的部分接近低秩：秩 8 在 `tiny` 上保留 76% 的能量和 99% 以上的改进，在 `laptop` 上是 41% 和 89%（24 步，2026-11-24）。
- B 为零、A 随机：这一层从冻结的层开始，而且有一个梯度不为零。两个都是零：什么也学不到。
- alpha/r 让不同秩的头几步一样大。alpha 和学习率是同一个旋钮：alpha 乘 4、学习率减半、A 的初值减半，就是同一次训练。
- 反向传播要穿过 W0；还剩全参数一步约 70% 的运算量。LoRA 省的是显存，时间省得不多。
- 先反量化再合并。把短训练的更新量直接合并进 4 比特，`tiny` 上的误差是更新量的 29%，`laptop` 上比更新量本身还大。
- 超过真实的秩，再大也没有收获；数据又少又吵时，反而更差。

**下一节：**[03 · 看起来像正态分布的四个比特](03_nf4.ipynb)

## 参考文献

- Hu 等，*LoRA: Low-Rank Adaptation of Large Language Models*，2021，[arXiv:2106.09685](https://arxiv.org/abs/2106.09685)：方法（第 4.1 节），秩（第 7 节）。
- Eckart 和 Young，*The approximation of one matrix by another of lower rank*，Psychometrika 1，1936。
- Kalajdzievski，*A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*，2023，[arXiv:2312.03732](https://arxiv.org/abs/2312.03732)：alpha/√r。
- Hayou 等，*The Impact of Initialization on LoRA Finetuning Dynamics*，2024，[arXiv:2406.08447](https://arxiv.org/abs/2406.08447)：B 为零还是 A 为零。
- Biderman 等，*LoRA Learns Less and Forgets Less*，2024，[arXiv:2405.09673](https://arxiv.org/abs/2405.09673)：全参数微调更新量的秩；alpha = 2r。
- Schulman 等，*LoRA Without Regret*，Thinking Machines Lab，2025，[thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/)：三分之二的运算量；学习率。
- PEFT，[LoRA 指南](https://huggingface.co/docs/peft/developer_guides/lora)。
"""

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
# 05 · What rank and alpha really do

*You double r. What happens to quality, memory, time, and the best learning rate?*

| | |
|---|---|
| Time | 50 to 65 minutes to read and do; the cells take under a minute on the `tiny` profile |
| Needs | lessons 02 and 04 |
| GPU memory | none on `tiny` and `laptop`; on `gpu` what lesson 04 needs |

**You will be able to**

1. say what a rank *can* do and what it *does* within a budget, and why the two are confused so often;
2. run an ablation that can be stopped and continued, with seeds, and read its intervals;
3. tell what happens to the best learning rate when the rank grows, for each way to set alpha;
4. compare places for adapters at equal parameter count;
5. find the artefact in a published ablation table.
"""

# %% [markdown] tags=["zh", "of-345923f2"]
"""
# 05 · 秩和 alpha 到底起什么作用

*把 r 加倍，效果、显存、时间和最佳学习率会怎么变？*

| | |
|---|---|
| 时间 | 读完做完约 50–65 分钟；`tiny` 配置下所有单元格加起来不到一分钟 |
| 需要 | 第 02 节和第 04 节 |
| 显存 | `tiny` 和 `laptop` 不用；`gpu` 与第 04 节相同 |

**学完之后，你能够**

1. 分清一个秩*能*做到什么、在给定预算内*实际*做到什么，以及为什么这两者常被混为一谈；
2. 跑一组带多个种子的消融实验（ablation），随时中断、随时接着跑，并读懂它的区间；
3. 说出在每一种设定 alpha 的办法下，秩变大时最佳学习率怎么变；
4. 在参数量相等的前提下比较适配器该放在哪里；
5. 从一张已发表的消融表格里找出假象。
"""

# %% [markdown] tags=["en"]
"""
## 1. Before anything runs

Three guesses; type a number in place of each `...`. All about the course's task (short instructions, as in lesson 04):

- rank 128 has 64 times as many parameters as rank 2. Each at its own best learning rate: by how many *nats per token* is the held-out loss of rank 128 lower? (Fine-tuning the tiny model at all lowers it by about half a nat.)
- keep alpha = 2r, as the lecture advises, and go from rank 2 to rank 128. By which *factor* does the best learning rate change? (1 means not at all.)
- QLoRA on Qwen3-1.7B as in lesson 04: going from rank 32 to rank 64, by how many *percent* does the peak memory grow?
"""

# %% [markdown] tags=["zh", "of-c1f6d60c"]
"""
## 1. 运行之前

先猜三个数，写在 `...` 的位置。说的都是课程任务（和第 04 节一样的短指令）：

- 秩 128 的参数量是秩 2 的 64 倍。各自用自己的最佳学习率，秩 128 的留出集损失比秩 2 低多少 *nats/词元*？（tiny 模型微调一次，总共也就降半个 nat 左右。）
- 按讲义的建议保持 alpha = 2r，秩从 2 变到 128，最佳学习率变成原来的几*倍*？（1 表示不变。）
- 像第 04 节那样用 QLoRA 训练 Qwen3-1.7B，秩从 32 变到 64，峰值显存增加*百分之几*？
"""

# %%
import labkit

labkit.predict("p5_1", ..., unit="nats per token")
labkit.predict("p5_2", ..., unit="times the learning rate")
labkit.predict("p5_3", ..., unit="% more memory")

# %% [markdown] tags=["en"]
"""
The tools: lesson 02's planted task, the sweep that `labkit sweep` runs, intervals from scipy. Look at the profile's own ranks and seeds.

> **What changes on `laptop` and `gpu`.** Only section 3 trains: six short runs of the profile's model, a quarter of lesson 04's steps each. `laptop` needs about ten minutes for them on two CPU cores; nobody has timed `gpu` for this edition. Everything else reads runs that were made with `labkit sweep` and are in the book; section 9 has those on real weights.
"""

# %% [markdown] tags=["zh", "of-dca557d3"]
"""
要用到的工具：第 02 节埋好更新量的任务、`labkit sweep` 背后的程序、scipy 算出的区间。请看本配置自带的秩和种子。

> **换成 `laptop` 或 `gpu` 会怎样？** 只有第 3 部分要训练：用配置中的模型做六次短训练，每次是第 04 节步数的四分之一。`laptop` 在两个 CPU 核上大约十分钟；`gpu` 这一版没有实测。其余部分读的都是事先用 `labkit sweep` 跑好、随书附带的结果；真实权重上的结果在第 9 部分。
"""

# %%
from labkit.files import write_text
from labkit.models.methods import TARGETS, Method
from labkit.models.places import runs_folder
from labkit.models.profiles import PROFILES
from labkit.models.shapes import shape_of
from labkit.page.results import Results, load_results, print_rows, rows_of_table, shipped
from labkit.page.results_figures import sweep_figure
from labkit.theory.intervals import paired_difference, t_interval
from labkit.theory.memory import predict
from labkit.theory.planted import PlantedTask
from labkit.training.grid import read_grid, trained
from labkit.training.sweep import run_sweep

force = False  # True runs section 3's trials again, also those that the disk has already
profile = labkit.current_profile()
print(f"{profile.name}: ranks {profile.ranks}, seeds {profile.seeds}, learning rate {profile.learning_rate}")

# %% [markdown] tags=["en"]
"""
## 2. What a rank can do, and what it does

Lesson 02 found a known rank again: an update of rank 8 was planted, every rank trained long enough, and the loss floor appeared exactly at r = 8. "Long enough" hides something. Here the same task with a budget of 40 steps, for five ranks and five learning rates, alpha = 2r. Before you run it: will the best rank be the same in every column?
"""

# %% [markdown] tags=["zh", "of-11a3b9ff"]
"""
## 2. 一个秩能做到什么，实际做到什么

第 02 节找回了一个已知的秩：埋下秩 8 的更新量，每个秩都训练足够久，损失的下限恰好在 r = 8 处降到零。“足够久”三个字里藏着东西。这里还是同一个任务，只给 40 步预算，五个秩、五个学习率，alpha = 2r。运行前想一想：每一列里最好的秩会是同一个吗？
"""

# %%
task, ranks, rates = PlantedTask(64, 48, rank=8), (2, 4, 8, 16, 48), (0.001, 0.003, 0.03, 0.1, 0.3)
loss = {}
for r in ranks:
    for rate in rates:
        loss[r, rate] = task.train(task.layer(r, 2 * r), learning_rate=rate, steps=40)[-1]
print("rank   floor ", *(f"{rate:>8g}" for rate in rates))
for r in ranks:
    print(f"{r:4} {max(0, 1 - r / 8):7.3f} ", *(f"{loss[r, rate]:8.3f}" for rate in rates))
for rate in rates:
    print(f"learning rate {rate:g}: the best rank is {min(ranks, key=lambda r: loss[r, rate])}")

# %% [markdown] tags=["en"]
"""
Two things stand in this table. In the middle column every rank is at its *floor*, 1 − r/8 below the true rank and 0 from there on: what a rank **can** do, and rank 48 can do nothing that rank 8 cannot. In the first column rank 48 beats rank 8 by a factor of ten, and in the last one it is worse than no training at all: what a rank **does** in 40 steps at somebody's learning rate.

A table with one learning rate is one column of this one. Whoever shows it shows how well the ranks like that rate.
"""

# %% [markdown] tags=["zh", "of-170ce963"]
"""
这张表里有两件事。中间一列，每个秩都到了自己的*下限*：秩不够时是 1 − r/8，够了就是 0。这是一个秩**能**做到的，秩 48 并不比秩 8 多做到什么。第一列里，秩 48 的损失只有秩 8 的十分之一；最后一列里，它比不训练还差。这是一个秩在 40 步里、在别人选的学习率下**实际**做到的。

只用一个学习率的表格，就是这张表里的一列。它比的其实是哪个秩更适合那个学习率。
"""

# %% [markdown] tags=["en"]
"""
## 3. A sweep that may be interrupted

Now the real thing. A *grid* is a TOML file: a key with a list is swept, a block's trials are all combinations. This one compares the smallest and the largest rank of your profile over three seeds. Look at the number of trials, and at what a trial's settings are.
"""

# %% [markdown] tags=["zh", "of-961131cf"]
"""
## 3. 可以中断的实验

现在来真的。*网格*（grid）是一个 TOML 文件：给列表的键会被逐个尝试，一个块里的试验（trial）就是所有组合。下面这个网格在三个种子上比较本配置最小和最大的秩。请看一共有几次试验，以及一次试验的设置是什么样子。
"""

# %%
steps = profile.steps // 4
grid = f'''
[shared]
steps = {steps}
train_rows = {steps * profile.rows_per_step}

[[grid]]
name = "live"
rank = [{profile.ranks[0]}, {profile.ranks[-1]}]
seeds = [0, 1, 2]
'''
out = runs_folder() / f"lesson05-{profile.name}"
trials = read_grid(write_text(out / "grid.toml", grid), profile=profile.name)
print(len(trials), "trials; the first:", trials[0].settings)

# %% [markdown] tags=["en"]
"""
A mistake in a grid is caught before anything is loaded. Expect a near name:
"""

# %% [markdown] tags=["zh", "of-ac663ec8"]
"""
网格写错了，在加载任何东西之前就会报错。请看它猜你想写的是什么：
"""

# %%
try:
    read_grid(write_text(out / "typo.toml", grid.replace("rank", "rnak")))
except labkit.LabError as error:
    print(error)

# %% [markdown] tags=["en"]
"""
Each trial is lesson 04's run: same loading, same trainer, same audit, but only the held-out loss is measured afterwards, and no adapter is kept. A finished trial is one line in the results file, on the disk before the next one begins. The six runs take about 20 seconds on `tiny`; watch the losses of the same rank differ. After a restart of the kernel the trials that the file has are not run again, and the last line says how many; `force = True` in the second cell runs them again.
"""

# %% [markdown] tags=["zh", "of-f857db0d"]
"""
每次试验就是第 04 节的那次训练：同样的加载、同样的训练器、同样的检查，只是训练后只测留出集损失，也不保留适配器。一次试验做完，就在结果文件里写下一行；先落盘，再开始下一次。六次训练在 `tiny` 上约 20 秒。请看同一个秩的损失彼此差多少。重启内核之后，文件里已有的试验不会重跑，最后一行会说明有几次；想重做，就把第二个单元格里的 `force` 改成 `True`。
"""

# %%
def say(row, now):
    if row:
        settings = row["settings"]
        result = row["error"] or f"{row['heldout_loss_after']:.4f}"
        print(f"rank {settings['rank']:3}, seed {settings['seed']}: {result}  ({now.left} left)")


done = run_sweep(trials, out / "live.jsonl", retry=True, force=force, on_row=say)
print(f"{done.ran} run, {done.failed} failed; {done.found} taken from {out / 'live.jsonl'} (force=True runs them again)")

# %% [markdown] tags=["en"]
"""
"Killed at any moment, it goes on where it was." Try it: cut the file in the middle of its last line, as a power failure would, and run the same cell again. Expect exactly one trial to run, and the same number as before, digit by digit: a trial seeds everything anew, so it does not matter what ran before it.
"""

# %% [markdown] tags=["zh", "of-2b44ac43"]
"""
“随时被杀掉，都能接着跑。”试试看：像断电那样，把文件最后一行拦腰截断，再跑一遍。应当恰好只补跑一次，而且得到的数和刚才一位不差：每次试验都重新设种子，和它前面跑过什么无关。
"""

# %%
whole = load_results(out / "live.jsonl")
(out / "live.jsonl").write_bytes((out / "live.jsonl").read_bytes()[:-100])
done = run_sweep(trials, out / "live.jsonl", on_row=say)
again = load_results(out / "live.jsonl")
print(f"{done.found} found, {done.ran} run")
assert [row["curve"] for row in again.rows] == [row["curve"] for row in whole.rows]

# %% [markdown] tags=["en"]
"""
**"One seed is evidence."** A seed decides the adapter's init, the dropout and the order of the rows. The first two lines say how much the mean of three seeds is worth: a 95 % interval by Student's t, mean ± 4.3 standard errors at n = 3. The third line compares the two ranks *pair by pair*: the same seed gave both the same rows in the same order, and what it did to both cancels. Look whether that interval holds zero.
"""

# %% [markdown] tags=["zh", "of-824d3efc"]
"""
**“一个种子就能说明问题。”** 种子决定适配器的初值、dropout 和样本顺序。前两行告诉你三个种子的均值有多可靠：按 t 分布算的 95% 区间，n = 3 时是均值 ± 4.3 个标准误。第三行把两个秩*逐对*相比：同一个种子给两边同样的样本、同样的顺序，它对两边相同的影响就抵消了。请看这个区间是否包含零。
"""

# %%
small, large = (again.where(rank=r).values() for r in (profile.ranks[0], profile.ranks[-1]))
print(f"rank {profile.ranks[0]:3}:     ", t_interval(list(small.values())))
print(f"rank {profile.ranks[-1]:3}:     ", t_interval(list(large.values())))
found = paired_difference(small, large)
print("difference:   ", found, "->", found.verdict)

# %% [markdown] tags=["en"]
"""
Take a single seed instead of three, and you could have reported any of these three differences. A difference whose interval holds zero is *noise* in this book: not "no effect", but "not shown".

From the command line the same is `labkit sweep GRID.toml`; `--engine ray` hands the trials to a Ray cluster, one GPU each. The larger runs of the next sections came from `data/grids/rank_tiny.toml`.
"""

# %% [markdown] tags=["zh", "of-be661ed3"]
"""
如果只跑一个种子，上面三个差值里的任何一个都可能成为你的“结论”。区间包含零的差异，本书一律叫*噪声*：不是说“没有作用”，而是说“没有证实”。

在命令行里，同样的事写作 `labkit sweep GRID.toml`；加上 `--engine ray`，试验就交给 Ray 集群，一次一张 GPU。后面几部分用到的较大实验来自 `data/grids/rank_tiny.toml`。
"""

# %% [markdown] tags=["en"]
"""
## 4. Rank and learning rate, over seeds

The book's runs on the tiny model: 24 steps of 8 rows, plain LoRA in float32, three seeds each. First the experiment that the lecture's advice describes: alpha = 2r at every rank. Before you look: in the column of 0.01, lesson 04's learning rate, what would you conclude about rank 128?
"""

# %% [markdown] tags=["zh", "of-d28c4c69"]
"""
## 4. 秩与学习率：多个种子的结果

书中附带的 tiny 模型实验：每次 24 步、每步 8 行，float32 的普通 LoRA，每组设置三个种子。先看讲义建议所描述的那种实验：每个秩都取 alpha = 2r。先别急着看全表：只看 0.01（第 04 节的学习率）那一列，你会对秩 128 下什么结论？
"""

# %%
tiny = load_results("rank_tiny")
main = tiny.where(block="alpha/r fixed")
print(f"{len(tiny)} trials, {len(tiny.failed)} failed; {tiny.provenance}\n")
print_rows(rows_of_table(main, down="rank", across="learning_rate"))

# %% [markdown] tags=["en"]
"""
By that column alone, "r = 128 destroys the model". Now let each rank have its own learning rate. Look at the best cell of each line, and compare with your first two guesses.
"""

# %% [markdown] tags=["zh", "of-0b54dab7"]
"""
只看那一列，结论会是“r = 128 把模型毁了”。现在让每个秩用自己的学习率。请看每一行最好的一格，并和你的前两个猜测比一比。
"""

# %%
best = {cell.at["rank"]: cell for cell in main.best("rank")}
for rank, cell in best.items():
    print(f"rank {rank:3}: best at {cell.at['learning_rate']:g}, held-out loss", cell.interval)
gain = paired_difference(best[128].by_seed, best[2].by_seed)
print("\nrank 2 minus rank 128:", gain, "->", gain.verdict)
labkit.reveal("p5_1", gain.mean)
labkit.reveal("p5_2", best[128].at["learning_rate"] / best[2].at["learning_rate"])

# %% [markdown] tags=["en"]
"""
The fair comparison tells another story: rank 128 at a tenth of the learning rate is as good as rank 16. (0.001 is the lowest rate of this grid, so the factor may be larger still.) And 64 times as many parameters bought about 0.023 nats, of the 0.55 that fine-tuning gains at all, with an interval that holds zero: noise, at three seeds. (From rank 2 to rank 16 the gain is as small and just outside the noise: 0.002 to 0.044.)

So the answer to "what happens to quality when I double r" is: at a fixed learning rate, anything; at its own, very little on this task.
"""

# %% [markdown] tags=["zh", "of-0094c219"]
"""
公平的比较讲的是另一个故事：学习率降到十分之一，秩 128 就和秩 16 一样好。（0.001 是这组网格里最小的学习率，真实的倍数可能更大。）64 倍的参数换来大约 0.023 nat，而微调总共能降 0.55 nat；区间包含零，三个种子分不出来，是噪声。（从秩 2 到秩 16 的改善同样小，刚好超出噪声：0.002 到 0.044。）

所以，“r 加倍，效果会怎样”的答案是：学习率不变时，什么都可能发生；各用各的学习率时，在这个任务上几乎不变。
"""

# %% [markdown] tags=["en"]
"""
## 5. Three ways to scale, three answers

**"A higher rank needs a lower learning rate."** Does it? That depends on what happens to alpha when r grows. Three rules, which agree at rank 8:

- alpha/r fixed (alpha = 2r, the lecture's rule): the factor stays 2;
- alpha fixed at 16 (the LoRA paper's rule, and that of *LoRA Without Regret*): the factor alpha/r falls as 1/r;
- rsLoRA: the factor alpha/√r falls as 1/√r.

The same ranks, learning rates and seeds under each rule. Look where each curve has its lowest point. (A mark at the upper edge lies above the picture.)
"""

# %% [markdown] tags=["zh", "of-2bfec2a5"]
"""
## 5. 三种缩放，三个答案

**“秩越大，学习率就要越小。”** 真的吗？这要看 r 变大时 alpha 怎么变。三种规则，在秩 8 处相同：

- alpha/r 固定（alpha = 2r，讲义的规则）：系数始终是 2；
- alpha 固定为 16（LoRA 论文的规则，也是 *LoRA Without Regret* 的规则）：系数 alpha/r 随 1/r 下降；
- rsLoRA：系数 alpha/√r 随 1/√r 下降。

同样的秩、学习率和种子，在每种规则下各跑一遍。请看每条曲线的最低点在哪里。（落在上边缘的标记，实际位置在图外。）
"""

# %%
names = ("alpha/r fixed", "alpha fixed", "rsLoRA")
rules = [Results(tiny.where(block=name).rows, name) for name in names]
fig = sweep_figure(rules, x="learning_rate", lines="rank", top=5.45)
alt = "Held-out loss by learning rate, one line a rank. With alpha/r fixed the lowest point moves "
alt += "left as the rank grows; with alpha fixed all ranks have it at 0.01; rsLoRA lies between"
labkit.show(fig, alt=alt)

# %%
for rule in rules:
    print(rule.name)
    for cell in rule.best("rank"):
        rank, rate = cell.at["rank"], cell.at["learning_rate"]
        alpha = rule.where(rank=rank).rows[0]["settings"]["alpha"]
        factor = alpha / (rank**0.5 if rule.name == "rsLoRA" else rank)
        print(f"  rank {rank:3}, factor {factor:6.3f}: best at {rate:<6g}", cell.interval)

# %% [markdown] tags=["en"]
"""
With alpha fixed the three curves lie on top of each other and every rank is best at 0.01: a learning rate found at rank 2 serves rank 128. *LoRA Without Regret* reports the same on models up to 8B and more. With alpha = 2r the best rate falls by a factor of ten; rsLoRA stands between. "A higher rank needs a lower learning rate" is true of the rule alpha = 2r, and of nothing else here.

At their best rates all nine lines lie within 0.06 nats of each other, which is about what a grid with steps of three in the learning rate leaves open. No rule wins; they differ in what they do to somebody who changes r and keeps the rest.

> **rsLoRA** was made so that high ranks go on learning (its argument is in lesson 02, section 4). In these runs that means: at rank 128 its best rate is about three times that of alpha = 2r, and a third of that of alpha fixed. Whoever switches it on at an old alpha and an old learning rate has changed the learning rate.
"""

# %% [markdown] tags=["zh", "of-0ea0f1f6"]
"""
alpha 固定时，三条曲线几乎重合，每个秩都在 0.01 最好：在秩 2 上找到的学习率，秩 128 也能用。*LoRA Without Regret* 在 8B 及更大的模型上报告了同样的现象。alpha = 2r 时，最佳学习率降到十分之一；rsLoRA 介于两者之间。“秩越大，学习率要越小”，只对 alpha = 2r 这条规则成立，对这里的其他规则都不成立。

各用最佳学习率时，九条曲线的损失相差不超过 0.06 nat，而学习率网格的间隔是三倍，本来就有这么大的余地。没有哪条规则胜出；区别在于：只改 r、别的不动的人，会遇到什么。

> **rsLoRA** 的初衷是让高秩也能继续学下去（论证见第 02 节第 4 部分）。在这些实验里，它的意思是：秩 128 时，它的最佳学习率大约是 alpha = 2r 的三倍，是 alpha 固定时的三分之一。沿用旧的 alpha 和旧的学习率、直接打开 rsLoRA，就等于改了学习率。
"""

# %% [markdown] tags=["en"]
"""
## 6. Alpha and the learning rate trade places

Lesson 02 showed an identity: alpha times 4, A's first values halved and the learning rate halved give the *same* curve. In practice nobody rescales A. So: alpha times c at one learning rate, against the learning rate times c at one alpha, on the real model at rank 8. Both runs have the same product. Expect the same shape; look whether they are the same numbers.
"""

# %% [markdown] tags=["zh", "of-3aae7ab5"]
"""
## 6. alpha 和学习率可以互换

第 02 节给出过一个恒等式：alpha 乘 4、A 的初值减半、学习率减半，得到*同一条*曲线。实际使用时没有人去缩放 A。所以这里比较：学习率不变、alpha 乘以 c，和 alpha 不变、学习率乘以 c；真实模型，秩 8。两种做法的乘积相同。预期形状一样；请看数值是否也一样。
"""

# %%
by_alpha = tiny.where(block="alpha at one learning rate")
by_rate = tiny.where(block="learning rate at one alpha")
traded = {}
for factor in (1 / 16, 1 / 4, 1, 4, 16):
    traded["alpha", factor] = by_alpha.where(alpha=16 * factor)
    traded["rate", factor] = by_rate.where(learning_rate=0.01 * factor)
    for name in ("alpha", "rate"):
        print(f"{name:5} x {factor:<7g}", t_interval(list(traded[name, factor].values().values())))

# %% [markdown] tags=["en"]
"""
Both have their minimum at the same place and rise on both sides, but the learning rate acts *more strongly*. The identity says why. Once A has moved far from its first values, what counts is the product of two things that both grow with the learning rate, and of one alpha: alpha times c is then worth a learning rate times √c. Expect the first two differences near zero now; the third compares equal factors once more:
"""

# %% [markdown] tags=["zh", "of-1f337d7e"]
"""
两者的最低点在同一处，两边都上升，但学习率的作用*更强*。上面的恒等式说明了原因：一旦 A 远离初值，起作用的是两个都随学习率增长的量的乘积，再乘一个 alpha。这时 alpha 乘 c 相当于学习率乘 √c。现在预期前两个差值接近零；第三个仍按相同的倍数来比：
"""

# %%
for of_alpha, of_rate in ((1 / 16, 1 / 4), (16, 4)):
    found = traded["rate", of_rate].against(traded["alpha", of_alpha])
    print(f"rate x {of_rate:g} minus alpha x {of_alpha:g}: {found} -> {found.verdict}")
same = traded["rate", 1 / 16].against(traded["alpha", 1 / 16])
print(f"rate x {1 / 16:g} minus alpha x {1 / 16:g}: {same} -> {same.verdict}")

# %% [markdown] tags=["en"]
"""
On the weak side the trade holds, nearly: alpha / 16 and learning rate / 4 are 0.012 nats apart (small, but outside the noise), while learning rate / 16 is 0.18 nats worse. On the strong side both runs break down, each seed in its own way, and nothing can be told apart. So alpha and the learning rate *are* one knob, with two scales on it. The lecture's advice, to fix alpha and tune the learning rate, is sound; tuning both is paying twice.
"""

# %% [markdown] tags=["zh", "of-0d4942de"]
"""
在偏弱的一侧，这个换算大致成立：alpha / 16 与学习率 / 4 只差 0.012 nat（很小，但超出噪声），而学习率 / 16 要差 0.18 nat。在偏强的一侧，两种训练都崩了，每个种子崩法不同，什么也分不出来。所以 alpha 和学习率*确实*是同一个旋钮，只是标了两种刻度。讲义“先固定 alpha，再调学习率”的建议是对的；两个都调，等于花两份钱。
"""

# %% [markdown] tags=["en"]
"""
## 7. Where to put the adapters, at equal count

**"Attention layers are enough."** A fair test gives each place the same number of parameters. The grid asks for `params = 68096`, and the rank follows: attention gets rank 19, the MLP rank 11, all linears rank 7. Look at the counts first, then at the best learning rate of each place.
"""

# %% [markdown] tags=["zh", "of-e843ed05"]
"""
## 7. 参数量相等时，适配器放在哪里

**“只挂注意力层就够了。”** 要公平地比，每个位置的参数量必须相等。网格里写的是 `params = 68096`，秩由它推出：注意力用秩 19，MLP 用秩 11，全部线性层用秩 7。先看参数量，再看每个位置的最佳学习率。
"""

# %%
places = tiny.where(block="targets at equal count")
for name, targets in (("attention", TARGETS[:4]), ("mlp", TARGETS[4:]), ("all", TARGETS)):
    rank = places.where(targets=name).rows[0]["settings"]["rank"]
    count = trained(shape_of("tiny"), Method(kind="lora", rank=rank, targets=targets))
    print(f"{name:10} rank {rank:3}, {count:,} parameters")
fig = sweep_figure(places, x="learning_rate", lines="targets", top=5.45)
alt = "Held-out loss by learning rate for attention only, MLP only and all linears; attention lies above"
labkit.show(fig, alt=alt)

# %%
best = {cell.at["targets"]: cell for cell in places.best("targets")}
for name, cell in best.items():
    print(f"{name:10} best at {cell.at['learning_rate']:g}:", cell.interval)
for first, second in (("mlp", "attention"), ("all", "attention"), ("all", "mlp")):
    found = paired_difference(best[first].by_seed, best[second].by_seed)
    print(f"{second} minus {first}: {found} -> {found.verdict}, effect {found.effect:.1f} SD")

# %% [markdown] tags=["en"]
"""
At equal count, attention alone is 0.06 nats worse than the MLP alone and than all linears, with every learning rate tried for each, and outside the noise. The MLP alone cannot be told from all linears (0.004 nats, noise).

Compare with section 4: where the adapters sit moved the loss more than 64 times as many parameters did. Biderman et al. and *LoRA Without Regret* find the same on large models; PEFT's benchmark points the same way with one seed. The lecture ranks attention first and the MLP second; nothing here supports that order.
"""

# %% [markdown] tags=["zh", "of-8441a3a6"]
"""
参数量相等、每个位置都试过同样的学习率，只挂注意力比只挂 MLP、比挂全部线性层都差 0.06 nat，超出噪声。只挂 MLP 与挂全部线性层分不出高下（0.004 nat，噪声）。

和第 4 部分对照：适配器放在哪里，比参数量多 64 倍的影响还大。Biderman 等和 *LoRA Without Regret* 在大模型上得到同样的结果；PEFT 的基准只有一个种子，方向也一致。讲义把注意力排第一、MLP 排第二；这里没有任何证据支持这个顺序。
"""

# %% [markdown] tags=["en"]
"""
## 8. When the rank is too high

**"r = 128 to 256 loses the efficiency."** And the quality? In this model no matrix is larger than 384 x 128, so an update has rank 128 at most, and rank 256 has more numbers in A and B than the update could ever use. Expect the count to grow far beyond the model's own linears, and the held-out loss to hardly notice.
"""

# %% [markdown] tags=["zh", "of-2280d38c"]
"""
## 8. 秩太大的时候

**“r = 128–256 失去效率优势。”** 那效果呢？这个模型里最大的矩阵是 384 × 128，更新量的秩最多 128；秩 256 的 A 和 B 里，数比更新量用得上的还多。预期参数量会远远超过模型自己的线性层，而留出集损失几乎没有反应。
"""

# %%
high = Results((*main.rows, *tiny.where(block="too high").rows), "alpha/r fixed")
linears = shape_of("tiny").linear_params()
for cell in high.best("rank"):
    count = trained(shape_of("tiny"), Method(kind="lora", rank=cell.at["rank"]))
    share = f"{count:>9,} parameters, {count / linears:6.1%} of the linears' own"
    print(f"rank {cell.at['rank']:3}: {share}; best", cell.interval)
more = paired_difference(*(high.best("rank")[place].by_seed for place in (-2, -1)))
print(f"rank 256 minus rank 128: {more} -> {more.verdict}")

# %% [markdown] tags=["en"]
"""
Too high a rank did no harm here: 256 is not worse than 128, nor than 16, once it has its own learning rate. It does cost, though. Here is the bill on the course's model, QLoRA with lesson 04's batch; look at how the peak grows, and compare with your third guess.
"""

# %% [markdown] tags=["zh", "of-21af94a5"]
"""
在这里，秩太大并没有坏处：只要用自己的学习率，256 不比 128 差，也不比 16 差。但它要花钱。下面是课程模型的账单，QLoRA，批大小与第 04 节相同；请看峰值怎么涨，并和你的第三个猜测比一比。
"""

# %%
course = PROFILES["gpu"]
peak = {}
for rank in (8, 32, 64, 128, 256):
    method = Method(kind="qlora", rank=rank)
    prediction = predict(shape_of(course.model), method, course.step)
    peak[rank] = prediction.peak_allocated_bytes
    millions = prediction.trainable_params / 1e6
    print(f"rank {rank:3}: {millions:7.1f} M parameters, peak {peak[rank] / 2**30:5.2f} GiB")
labkit.reveal("p5_3", 100 * (peak[64] / peak[32] - 1))

# %% [markdown] tags=["en"]
"""
The answer to the opening question, in the units of your bill: doubling r doubles the adapter, its gradients and its optimizer states, and from 32 to 64 that is 13 % of the peak. It is not small for ever: from 128 to 256 the peak grows by half. Time grows less: on Qwen3-1.7B a training pass over 512 tokens takes 3.72 TFLOP at rank 8, 3.91 at rank 64 and 4.55 at rank 256 (PyTorch's flop counter on the real architecture, `labkit.training.ledger.step_flops`). What doubles your bill is the sweep that a new rank deserves.
"""

# %% [markdown] tags=["zh", "of-d80a574e"]
"""
开头那个问题的答案，用账单的单位来说：r 加倍，适配器、它的梯度和优化器状态都加倍，从 32 到 64，峰值只多 13%。但不会一直这么少：从 128 到 256，峰值多出一半。时间增加得更少：Qwen3-1.7B 训练 512 个词元，秩 8 要 3.72 TFLOP，秩 64 要 3.91，秩 256 要 4.55（PyTorch 的运算量计数器在真实结构上数出来的，`labkit.training.ledger.step_flops`）。真正让账单翻倍的，是新的秩需要重新搜一遍学习率。
"""

# %% [markdown] tags=["en"]
"""
## 9. On real weights

The same questions on SmolLM2-135M (`data/grids/rank_laptop.toml`: alpha = 2r, 20 steps of 4 rows, three seeds). Before you look: will the best rank be the same in each column of this table? Then look at the last line.
"""

# %% [markdown] tags=["zh", "of-07ec87c5"]
"""
## 9. 真实权重上的结果

同样的问题，放到 SmolLM2-135M 上（`data/grids/rank_laptop.toml`：alpha = 2r，20 步，每步 4 行，三个种子）。先想一想：这张表的每一列里，最好的秩会是同一个吗？然后看最后一行。
"""

# %%
for part in shipped("rank_laptop"):
    real = part.where(block="rank x learning rate")
    print(f"{len(part)} trials, {len(part.failed)} failed; {part.provenance}\n")
    print_rows(rows_of_table(real, down="rank", across="learning_rate"))
    best = {cell.at["rank"]: cell for cell in real.best("rank")}
    for rank, cell in best.items():
        print(f"rank {rank:2}: best at {cell.at['learning_rate']:g}, held-out loss", cell.interval)
    found = paired_difference(best[64].by_seed, best[2].by_seed)
    print("rank 2 minus rank 64:", found, "->", found.verdict)

# %% [markdown] tags=["en"]
"""
Three columns, three stories: at 0.0005 rank 64 is 0.47 nats better than rank 2 (0.40 to 0.54), at 0.002 it is no better than rank 16, and at 0.008 it is broken, each seed in its own way, while rank 2 has its best value. Each rank at its own rate: 2.302, 2.302 and 2.297 nats, and the differences are noise. (Rank 2 is best at the largest rate of the grid, so it may have more to give.) The tables that "show" that rank 64 is far better, and those that "show" that it is unstable, can come from the same model, the same data and the same week.

Now move the explorer: choose the runs, what stands across, and which measure. Find a comparison for which the line under the controls says that other settings reach the best one: that is what noise looks like. (The runs `rank_laptop: alpha` hold against `rank_laptop: rank x learning rate` what section 6 held: alpha / 4 beside learning rate / 4, at rank 16.)
"""

# %% [markdown] tags=["zh", "of-215fa5d9"]
"""
三列，三个故事：在 0.0005，秩 64 比秩 2 好 0.47 nat（0.40–0.54）；在 0.002，它不比秩 16 好；在 0.008，它训练崩了，每个种子崩法不同，而秩 2 恰恰在这里最好。各用自己的学习率：2.302、2.302 和 2.297 nat，差异都是噪声。（秩 2 的最佳值落在网格里最大的学习率上，也许还有余地。）“证明”秩 64 好得多的表格，和“证明”秩 64 不稳定的表格，可以出自同一个模型、同一份数据、同一个星期。

现在动手拨一拨：选哪组实验、横轴放什么、看哪个指标。找一组比较，让控件下面那行字说“另有几组设置的区间与它重叠”：噪声就是这个样子。（把 `rank_laptop: alpha` 和 `rank_laptop: rank x learning rate` 对照着看，就是第 6 部分的比较：秩 16 上，alpha / 4 对学习率 / 4。）
"""

# %%
from labkit.page.explorers import results_explorer

found = shipped("rank_tiny", "rank_laptop")
results_explorer(*found, start="rank_tiny: alpha/r fixed")

# %% [markdown] tags=["en"]
"""
## 10. Three sources that disagree, and the lecture

Papers disagree about rank, and mostly for the reason of section 4:

| source | what it found | learning rates |
|---|---|---|
| Hu et al. 2021, table 6 | rank 1 to 8 is enough (GPT-3) | tuned once, alpha fixed at the first r tried |
| Biderman et al. 2024 | code wants rank 256, alpha = 2r helps there | swept for each method |
| *LoRA Without Regret*, 2025 | the best rate hardly depends on the rank with alpha fixed | swept for each rank |
| PEFT's method comparison, 2026 | rsLoRA r = 64: 51.3 %, LoRA r = 64: 47.4 % | one rate, one seed |

Take the last line. rsLoRA with r = alpha = 64 multiplies the update by 8, not by 2: it is another learning rate in disguise. And one seed on 1,319 questions? Look at what the counting alone leaves open.
"""

# %% [markdown] tags=["zh", "of-3d237e97"]
"""
## 10. 互相矛盾的三个来源，以及讲义

关于秩，论文之间说法不一，原因大多就在第 4 部分：

| 来源 | 结论 | 学习率 |
|---|---|---|
| Hu 等 2021，表 6 | 秩 1–8 就够（GPT-3） | 只调一次，alpha 固定为最先试的 r |
| Biderman 等 2024 | 代码任务要用秩 256，此时 alpha = 2r 有帮助 | 每种方法各搜一遍 |
| *LoRA Without Regret*，2025 | alpha 固定时，最佳学习率几乎与秩无关 | 每个秩各搜一遍 |
| PEFT 的方法对比，2026 | rsLoRA r = 64：51.3%，LoRA r = 64：47.4% | 一个学习率，一个种子 |

看最后一行。rsLoRA 取 r = alpha = 64，更新量乘的是 8 而不是 2：这等于偷偷换了学习率。再看只有一个种子、1,319 道题：单是计数本身就留下多大的不确定？
"""

# %%
from labkit.theory.intervals import wilson_interval

published = {"LoRA r = 64": 0.474, "rsLoRA r = 64": 0.513, "LoRA r = 32, q, v": 0.478, "LoRA r = 10, MLP": 0.494}
for name, share in published.items():
    low, high = wilson_interval(round(1319 * share), 1319)
    print(f"{name:18} {share:.1%}, 95 % interval {low:.1%} to {high:.1%}")

# %% [markdown] tags=["en"]
"""
All these intervals overlap; the first pair differs by two standard errors of the count alone, and another seed would add its own scatter. What the lecture says about rank, alpha and places, claim by claim, with what was computed or published:
"""

# %% [markdown] tags=["zh", "of-9ac075fa"]
"""
这些区间全都重叠；第一对的差只有计数本身的两个标准误，而换一个种子还会带来新的波动。讲义关于秩、alpha 和挂载位置的说法，逐条列在下面，附上算出的或已发表的值：
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="05")

# %% [markdown] tags=["en"]
"""
## Exercises

**q5_1 (compute).** A result is a number with its interval. Write `difference`: two lists, the losses of two settings with the same seeds in the same order; return the two ends of the 95 % t interval of the mean of *second minus first*. The check uses other numbers and other n.
"""

# %% [markdown] tags=["zh", "of-75727395"]
"""
## 练习

**q5_1（计算）** 结果是一个数加上它的区间。写出 `difference`：输入两个列表，是两组设置在相同种子（顺序也相同）下的损失；返回*第二组减第一组*的均值的 95% t 区间的两端。检查用的是别的数和别的 n。
"""

# %%
import numpy as np
from scipy import stats

from labkit import check

print(f"t at n = 3: {stats.t.ppf(0.975, 2):.2f}; the spread of 1, 2, 3: {np.std([1, 2, 3], ddof=1)}")


def difference(first: list[float], second: list[float]) -> tuple[float, float]:
    """Low and high end of the 95 % t interval of the mean paired difference."""
    ### BEGIN SOLUTION
    d = np.array(second) - np.array(first)
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - half, d.mean() + half
    ### END SOLUTION


check("q5_1", difference)

# %% [markdown] tags=["en", "hint-q5_1"]
"""
Section 3: the third line is narrower than the first two. What was subtracted from what?
---
Mean of the n differences, plus and minus t(0.975, n - 1) times their standard deviation (ddof=1) divided by the root of n.
---
d = np.array(second) - np.array(first); half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
"""

# %% [markdown] tags=["zh", "hint-q5_1", "of-e739c866"]
"""
第 3 部分：第三行比前两行窄。是谁减去了谁？
---
n 个差值的均值，加减 t(0.975, n − 1) 乘以差值的标准差（ddof=1）再除以 √n。
---
d = np.array(second) - np.array(first); half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
"""

# %% [markdown] tags=["en"]
"""
**q5_2 (read a table).** Table 15 of the DoRA paper: LLaMA-7B, mean accuracy on eight tasks, by rank. The learning rate was found for DoRA; LoRA's baseline of rank 32 came from an earlier paper. Which two of LoRA's numbers are suspicious, and what is the likeliest cause: `"seed noise"`, `"rank too small"`, `"learning rate"` or `"test set too small"`?
"""

# %% [markdown] tags=["zh", "of-1fee86a4"]
"""
**q5_2（读表）** DoRA 论文的表 15：LLaMA-7B，八个任务的平均准确率，按秩列出。学习率是为 DoRA 调的；LoRA 在秩 32 的基线来自更早的一篇论文。LoRA 的哪两个数可疑？最可能的原因是 `"seed noise"`（种子噪声）、`"rank too small"`（秩太小）、`"learning rate"`（学习率）还是 `"test set too small"`（测试集太小）？
"""

# %%
from labkit.page.questions.q05 import TABLE_15

print_rows([("rank", "LoRA, %", "DoRA, %"), *((rank, *pair) for rank, pair in TABLE_15.items())])
reading = {"ranks": ..., "cause": ...}
### BEGIN SOLUTION
reading = {"ranks": (4, 8), "cause": "learning rate"}
### END SOLUTION
check("q5_2", reading)

# %% [markdown] tags=["en", "hint-q5_2"]
"""
Follow the column LoRA from below: where does it jump?
---
A LoRA of rank 8 and a DoRA of rank 8 differ by one vector. How can 37 points lie between them? Which knob was not turned for LoRA?
---
{"ranks": (4, 8), "cause": "learning rate"}
"""

# %% [markdown] tags=["zh", "hint-q5_2", "of-b060c0ed"]
"""
从下往上看 LoRA 那一列：它在哪里跳了一下？
---
秩 8 的 LoRA 和秩 8 的 DoRA 只差一个向量，怎么会差出 37 分？哪个旋钮没有为 LoRA 拧过？
---
{"ranks": (4, 8), "cause": "learning rate"}
"""

# %% [markdown] tags=["en"]
"""
**q5_3 (design).** You have time for 12 runs on the course's model, and one question: is rank 64 better than rank 8? Choose lists of ranks, learning rates and seeds; all combinations will run.
"""

# %% [markdown] tags=["zh", "of-c85a1a4b"]
"""
**q5_3（设计）** 你的时间够在课程模型上跑 12 次，要回答一个问题：秩 64 比秩 8 好吗？请选出秩、学习率和种子的列表；所有组合都会跑一遍。
"""

# %%
plan = {"ranks": ..., "learning_rates": ..., "seeds": ...}
### BEGIN SOLUTION
plan = {"ranks": [8, 64], "learning_rates": [1e-4, 3e-4], "seeds": [0, 1, 2]}
### END SOLUTION
check("q5_3", plan)

# %% [markdown] tags=["en", "hint-q5_3"]
"""
Section 4 says what a table with one learning rate compares; section 3, what one seed is worth.
---
2 ranks x 2 learning rates x 3 seeds = 12. The rates a factor of 3 apart, around the profile's.
---
{"ranks": [8, 64], "learning_rates": [1e-4, 3e-4], "seeds": [0, 1, 2]}
"""

# %% [markdown] tags=["zh", "hint-q5_3", "of-4eb02885"]
"""
第 4 部分说了只用一个学习率的表格比的是什么；第 3 部分说了一个种子值多少。
---
2 个秩 × 2 个学习率 × 3 个种子 = 12。学习率相差 3 倍，放在配置的学习率附近。
---
{"ranks": [8, 64], "learning_rates": [1e-4, 3e-4], "seeds": [0, 1, 2]}
"""

# %% [markdown] tags=["en"]
"""
**q5_4 (predict).** All linears of Qwen3-1.7B at rank 16. Which rank must attention alone (q, k, v, o) have for as many parameters? A whole number; lesson 02's count helps, a calculation by hand too.
"""

# %% [markdown] tags=["zh", "of-7af2caca"]
"""
**q5_4（预测）** Qwen3-1.7B 的全部线性层挂秩 16。如果只挂注意力（q、k、v、o），要用多大的秩，参数量才相等？答案取整数；可以用第 02 节的计数函数，也可以手算。
"""

# %%
attention_rank = ...
### BEGIN SOLUTION
shape = shape_of("qwen3-1.7b")
everywhere = trained(shape, Method(kind="lora", rank=16))
attention = trained(shape, Method(kind="lora", rank=1, targets=TARGETS[:4]))
attention_rank = round(everywhere / attention)
### END SOLUTION
check("q5_4", attention_rank)

# %% [markdown] tags=["en", "hint-q5_4"]
"""
Parameters are r times the sum of in + out over the chosen linears.
---
The ratio of the two sums, times 16: shape_of("qwen3-1.7b").linears() has the sizes.
---
round(trained(shape, Method(kind="lora", rank=16)) / trained(shape, Method(kind="lora", rank=1, targets=TARGETS[:4])))
"""

# %% [markdown] tags=["zh", "hint-q5_4", "of-9a72fa46"]
"""
参数量等于 r 乘以所选线性层的 in + out 之和。
---
两个和之比，再乘 16：尺寸在 shape_of("qwen3-1.7b").linears() 里。
---
round(trained(shape, Method(kind="lora", rank=16)) / trained(shape, Method(kind="lora", rank=1, targets=TARGETS[:4])))
"""

# %% [markdown] tags=["en"]
"""
**q5_5 (explain).** A colleague trains ranks 8 and 128 with alpha = 2r, at the learning rate that was best for rank 8, with one seed, and writes: "r = 128 overfits." In three sentences: what is wrong with the experiment, what would you expect to see instead, and which runs would show it?
"""

# %% [markdown] tags=["zh", "of-ab25d0b7"]
"""
**q5_5（解释）** 同事用 alpha = 2r 训练了秩 8 和秩 128，学习率用的是秩 8 的最佳值，只跑了一个种子，然后写道：“r = 128 过拟合了。”请用三句话说明：这个实验错在哪里？你预期真正会看到什么？哪些训练能证明？
"""

# %%
answer = ...
### BEGIN SOLUTION
answer = (
    "With alpha = 2r the factor stays 2 while the update sums 16 times as many directions, "
    "so the rate that suits rank 8 is too high for rank 128. I expect rank 128 to reach about "
    "the same held-out loss at a rate several times smaller; a high training loss at the old "
    "rate would be divergence, not overfitting. Both ranks over three learning rates and "
    "three seeds, compared at their best rates by a paired interval, would show it."
)
### END SOLUTION
check("q5_5", answer)

# %% [markdown] tags=["en", "hint-q5_5"]
"""
Which column of the table in section 4 did the colleague print?
---
Overfitting is a low training loss with a high held-out loss. What would the training loss be after too large a learning rate?
---
One sentence on alpha = 2r and the learning rate, one on the expected result at rank 128's own rate, one on rates x seeds.
"""

# %% [markdown] tags=["zh", "hint-q5_5", "of-98f81ea0"]
"""
同事印出来的，是第 4 部分表格里的哪一列？
---
过拟合是指训练损失低、留出集损失高。学习率过大之后，训练损失会怎样？
---
一句说 alpha = 2r 与学习率，一句说秩 128 用自己的学习率时的预期结果，一句说“学习率 × 种子”。
"""

# %% [markdown] tags=["en"]
"""
## Summary

- A rank bounds what can be learned (the floor 1 − r/k, gone at the true rank); within a budget the learning rate decides what is learned. A table with one learning rate compares learning rates.
- Each rank at its own best rate, three seeds: ranks 2 to 128 lie within 0.03 nats of each other on the course's task, on the tiny model; ranks 2, 16 and 64 within 0.005 on SmolLM2-135M, which is noise.
- alpha = 2r: the best rate fell from 0.01 to 0.001 between rank 2 and rank 128. alpha fixed: 0.01 throughout. rsLoRA: in between.
- alpha and the learning rate are one knob with two scales: alpha / 16 came within 0.012 nats of learning rate / 4.
- At equal parameter count, attention alone was 0.06 nats worse than the MLP alone or all linears, which could not be told apart.
- Doubling the rank from 32 to 64 costs 13 % more peak memory on Qwen3-1.7B with QLoRA, from 128 to 256 half as much again.
- Say n and the interval, pair the seeds, call noise noise.

**Next:** [06 · DoRA against LoRA](06_dora.ipynb), judged by the same rules

## References

- Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685): section 4.1 (alpha), table 6 (ranks).
- Biderman et al., *LoRA Learns Less and Forgets Less*, 2024, [arXiv:2405.09673](https://arxiv.org/abs/2405.09673): rank 256, alpha = 2r, targets.
- Schulman et al., *LoRA Without Regret*, Thinking Machines Lab, 2025, [thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/): learning rate and rank, attention only.
- Kalajdzievski, *A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*, 2023, [arXiv:2312.03732](https://arxiv.org/abs/2312.03732).
- Liu et al., *DoRA: Weight-Decomposed Low-Rank Adaptation*, 2024, [arXiv:2402.09353](https://arxiv.org/abs/2402.09353): table 15.
- Hugging Face, *PEFT method comparison*, MetaMathQA, 2026, [github.com/huggingface/peft](https://github.com/huggingface/peft/tree/main/method_comparison).
- Student, *The probable error of a mean*, Biometrika 6, 1908.
"""

# %% [markdown] tags=["zh", "of-f3665a07"]
"""
## 小结

- 秩限定了能学到多少（下限 1 − r/k，到真实的秩就降为零）；在给定预算内，学到多少由学习率决定。只用一个学习率的表格，比的是学习率。
- 每个秩用自己的最佳学习率、三个种子：在 tiny 模型的课程任务上，秩 2 到 128 的差别不超过 0.03 nat；在 SmolLM2-135M 上，秩 2、16、64 的差别不超过 0.005，是噪声。
- alpha = 2r：从秩 2 到秩 128，最佳学习率从 0.01 降到 0.001。alpha 固定：始终是 0.01。rsLoRA 介于两者之间。
- alpha 和学习率是同一个旋钮的两种刻度：alpha / 16 与学习率 / 4 只差 0.012 nat。
- 参数量相等时，只挂注意力比只挂 MLP 或挂全部线性层差 0.06 nat；后两者分不出高下。
- 用 QLoRA 训练 Qwen3-1.7B，秩从 32 加倍到 64，峰值显存多 13%；从 128 到 256，再多一半。
- 报告 n 和区间，按种子配对，是噪声就说是噪声。

**下一节：**[06 · DoRA 与 LoRA 的较量](06_dora.ipynb)，用同样的标准来评判

## 参考文献

- Hu 等，*LoRA: Low-Rank Adaptation of Large Language Models*，2021，[arXiv:2106.09685](https://arxiv.org/abs/2106.09685)：第 4.1 节（alpha），表 6（秩）。
- Biderman 等，*LoRA Learns Less and Forgets Less*，2024，[arXiv:2405.09673](https://arxiv.org/abs/2405.09673)：秩 256，alpha = 2r，挂载位置。
- Schulman 等，*LoRA Without Regret*，Thinking Machines Lab，2025，[thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/)：学习率与秩，只挂注意力。
- Kalajdzievski，*A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA*，2023，[arXiv:2312.03732](https://arxiv.org/abs/2312.03732)。
- Liu 等，*DoRA: Weight-Decomposed Low-Rank Adaptation*，2024，[arXiv:2402.09353](https://arxiv.org/abs/2402.09353)：表 15。
- Hugging Face，*PEFT method comparison*，MetaMathQA，2026，[github.com/huggingface/peft](https://github.com/huggingface/peft/tree/main/method_comparison)。
- Student，*The probable error of a mean*，Biometrika 6，1908。
"""

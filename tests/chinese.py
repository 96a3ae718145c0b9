"""Is a line that labkit says to a Chinese student in Chinese? Commands, names and paths stay as they are typed."""

import re

TYPED = re.compile(
    r"""`[^`]+`|\[[a-z ]+\]|（\w*Error: [^）]*）|Hugging\ Face\ Hub
    |pip\ (?:un)?install(?:\ -\S+)*\ [!-~]+|git\ checkout\ data|unset(?:\ [a-z]+_proxy)+
    |labkit\ [a-z]+(?:\ --[a-z]+(?:\ [a-z]+)?)*""",
    re.VERBOSE,
)
ENGLISH = re.compile(r"\b[A-Za-z][A-Za-z']*(?:[,:;]? [A-Za-z][A-Za-z']*)+\b")  # two words or more
CHINESE = re.compile("[\u4e00-\u9fff]")


def english_left(said: str) -> list[str]:
    """The pieces of English in what should be Chinese; empty when there are none."""
    return ENGLISH.findall(TYPED.sub("…", said))

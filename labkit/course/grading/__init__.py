"""Grading executed notebooks as data: nothing of a submission is executed, imported or unpickled in this process.

``sources`` finds the files, ``read`` turns one into plain data, ``judge`` holds it against the rubric, ``batch`` does
that for a whole class in worker processes with limits, ``report`` writes what came out. ``rerun`` executes a notebook,
and only in a sandbox.
"""

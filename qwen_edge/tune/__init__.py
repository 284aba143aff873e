"""The fastest settings for a model on this machine: found by measuring, remembered, used by load().

::

    arms.py      which settings are worth trying on this machine, and what has to be measured for each
    search.py    which to measure next, which to drop: successive halving, no engine inside
    worker.py    the child that measures: one model, many settings
    trials.py    the children, as many at once as memory allows
    finding.py   all of it for one file, and the record that `qwen_edge.tuned` keeps
"""

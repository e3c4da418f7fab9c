"""A drop-in for tornadose: replace ``tornadose`` by ``waterspout.tornadose`` in the imports of its stores and handlers.

Names, arguments and habits are those of tornadose 0.4 and 0.2, without what was broken there. It only translates: the
work is done by the packages around it.
"""

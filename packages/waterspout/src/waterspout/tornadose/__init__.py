"""A drop-in for tornadose's stores: replace ``tornadose.stores`` by ``waterspout.tornadose.stores`` in the imports, and
``tornadose.handlers`` by ``waterspout``, whose `EventSource` and `WebSocketSubscriber` serve them.

Names, arguments and habits are those of tornadose 0.4 and 0.2, without what was broken there. It only translates: the
work is done by the packages around it.
"""

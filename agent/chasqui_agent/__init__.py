"""chasqui's agent: the relay that runs on the cluster, without a daemon and without dependencies.

`SERIAL` is raised with every change of behaviour: a client deploys only over a lower serial, so two laptops
with different versions never replace each other's agent in turn.
"""

VERSION = "0.1.0"
SERIAL = 14
PROTOCOL = 2

"""The hook `ep`, first version: looks, and leaves the job alone."""

import pbs

event = pbs.event()
assert str(event.job.id)
event.accept()

"""Several clusters at once: `sync --all`, and jobs for whichever has a slot free (`add --remote any`).

`together` runs one `chasqui sync` process for each remote, `board` shows how far they are, `place` gives the jobs that
go anywhere to a remote. Nothing here is imported by the sync of one remote.
"""

"""`chasqui why JOB`: in plain words, why a job does not run or how it ended.

`known` gathers what the ledger, the folder and (over an open connection) the relay know; `endings` and `words` turn it
into sentences and decide nothing else; `verbs` is the command line. Nothing here is imported by a sync.
"""

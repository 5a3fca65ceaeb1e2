"""Looking after results: proving again what is here, keeping, and cleaning the cluster only when it is safe.

`rules` decides (with `chasqui_agent.clearance`, which decides about files), `book` keeps proofs in the ledger, `local`
hashes this computer's files, `errand` asks the agent, `verify` and `clean` put them together, `verbs` is the command
line. Nothing here is imported by a sync, unless it has something to prove or to clean.
"""

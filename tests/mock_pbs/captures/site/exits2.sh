#!/bin/sh
# mom_priv/epilogue: its exit status means nothing to the job.
exit 2

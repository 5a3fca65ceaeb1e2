#!/bin/sh
# mom_priv/epilogue: its stdout goes into the job's output file.
echo "hello from epilogue stdout"

#!/bin/sh
# mom_priv/epilogue: notes that it ran, and with how many arguments.
echo "$1 nargs=$#" >>"$(dirname "$0")/ran.log"

#!/bin/bash
# Which job names are accepted, on the command line and as the name of the script.
export LC_ALL=C
show_name() { [ -n "$1" ] && qstat -f -w "$1" | grep Job_Name; }
of_length() { printf "%0$1d" 0 | tr 0 a; }

for length in 15 16 200 229 230 231 236 237 255; do
    names+=("$(of_length $length)")
done
# shellcheck disable=SC2016
names+=('a b' a/b a:b 'a,b' a@b 'a#b' 'a!b' 'a$b' 'a*b' 'a?b' 'a[b]' 'a{b}' 'a(b)' "a'b" 'a"b' 'a\b' 'a|b' 'a&b' 'a;b' 'a<b>'
    a=b a+b a-b a.b a_b a%b 'a^b' a~b 'a`b' 1abc _abc -abc .abc +abc @abc '#abc' $'\303\251' '' ' ' $'a\tb' $'a\nb')
for name in "${names[@]}"; do
    id=$(qsub -h -N "$name" ok.sh 2>names.err)
    printf -- '-N %q (len %d): rc=%d id=%s err=%s\n' "$name" "${#name}" $? "$id" "$(head -n 1 names.err)"
    show_name "$id"
done
for name in 'sp ace.sh' 1num.sh 'we:ird@n,ame.sh' "$(of_length 240).sh"; do
    cp ok.sh "$name"
    echo "script name: $name"
    id=$(qsub -h "$name")
    echo "rc=$? id=$id"
    show_name "$id"
done

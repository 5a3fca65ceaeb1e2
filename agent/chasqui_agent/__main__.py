# The start of the agent, as a folder (python3 -I -S chasqui_agent) and at the top of the .pyz.
# Valid on every Python since 2.6: an old one has to be told so, not to print a syntax error.
import os
import sys

if sys.version_info < (3, 6):
    sys.stderr.write("chasqui-agent: Python %d.%d is too old, 3.6 or newer is needed\n" % sys.version_info[:2])
    sys.exit(96)


IS_CHASQUI_AGENT = True  # tells launch.own_path() that this process can be started again from here


def _start():
    here = os.path.realpath(os.path.dirname(os.path.abspath(__file__)))
    if os.path.isdir(here):
        # -I takes our own place off sys.path; as a folder, the package's parent has to be there.
        sys.path.insert(0, os.path.dirname(here))
    else:
        # In the .pyz: the same modules, compiled by this very Python, stand beside it where `install` could write them.
        compiled = here[: -len(".pyz")] + "." + sys.implementation.cache_tag + ".zip"
        sys.path.insert(0, compiled if os.path.isfile(compiled) else here)
    from chasqui_agent import cli

    sys.exit(cli.main(sys.argv[1:]))


_start()

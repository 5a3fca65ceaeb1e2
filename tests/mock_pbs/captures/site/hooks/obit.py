"""The hook `jo` of the server: nothing but there."""

import pbs

pbs.event().accept()

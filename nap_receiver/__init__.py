"""nap: `git push nap master` to a running, announced app. The story is told in `receiver`."""

import os

# etcd3's generated code predates protobuf 4, and a process has one implementation of it: that of who imports it first.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")

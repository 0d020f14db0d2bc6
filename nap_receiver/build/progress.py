"""Print BuildKit's progress to the pusher, as lines.

The engine passes on BuildKit's own messages (moby/buildkit, `api/services/control/control.proto`, StatusResponse), in
base64. This module reads only the steps, the state of each step, and the output of each step. A step is reported again
with each change.
"""

import codecs
import re
from base64 import b64decode
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from nap_receiver.build.failure import is_disk_full
from nap_receiver.build.lines import Lines
from nap_receiver.core.channel import plain

# Times are left as they arrive: that there is one is all that counts. Texts are bytes, for a Dockerfile may hold any.
_SCHEMA = """
name: "nap/buildkit.proto"
package: "nap.buildkit"
syntax: "proto3"
message_type {
  name: "Status"
  field { name: "vertexes" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".nap.buildkit.Vertex" }
  field { name: "logs" number: 3 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: ".nap.buildkit.Log" }
}
message_type {
  name: "Vertex"
  field { name: "digest" number: 1 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "name" number: 3 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "cached" number: 4 label: LABEL_OPTIONAL type: TYPE_BOOL }
  field { name: "started" number: 5 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "completed" number: 6 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "error" number: 7 label: LABEL_OPTIONAL type: TYPE_BYTES }
}
message_type {
  name: "Log"
  field { name: "vertex" number: 1 label: LABEL_OPTIONAL type: TYPE_BYTES }
  field { name: "msg" number: 4 label: LABEL_OPTIONAL type: TYPE_BYTES }
}
"""
_STEP = re.compile(r"\[(?P<place>(?:(?P<stage>.+) )?\d+/\d+)\] (?P<text>.*)", re.DOTALL)
_LAST_LINES = 10


def _status() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nap.buildkit.Status"))


Status = _status()
"""A report, as the engine passes it on."""


@dataclass
class Step:
    """One instruction that runs."""

    name: str = ""
    """`[builder 2/4] RUN make`"""
    place: str = ""
    """`builder 2/4`; of a Dockerfile of one stage `2/4`."""
    stage: str = ""
    text: str = ""
    """`RUN make`"""
    is_told: bool = False
    is_over: bool = False
    decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))
    """Of what it prints; a report may end within a letter."""
    lines: Lines = field(default_factory=Lines)
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))
    """What it printed last."""
    disk_full: bool = False


class Progress:
    """The state of a running build."""

    def __init__(self) -> None:
        self._steps: dict[bytes, Step] = {}
        self._stages: set[str] = set()
        self._spoke = ""
        self.failed: Step | None = None
        """The step that ended the build, if one did."""

    @property
    def spoke_last(self) -> bool:
        """Whether the failed step was the last one to print a line."""
        return self.failed is not None and self._spoke == self.failed.place

    def of(self, report: str) -> Iterator[str]:
        """Yield the new lines of a report."""
        status = Status.FromString(b64decode(report))
        for vertex in status.vertexes:
            yield from self._of_vertex(vertex)
        for log in status.logs:
            step = self._steps.get(log.vertex)
            if step:
                yield from self._printed(step, step.lines.of(step.decoder.decode(log.msg)))

    def rest(self) -> Iterator[str]:
        """Yield the last output, which has no line end."""
        for step in self._steps.values():
            yield from self._printed(step, step.lines.rest())

    def _of_vertex(self, vertex: Any) -> Iterator[str]:
        step = self._steps.setdefault(vertex.digest, Step())
        if not step.name:
            found = _STEP.fullmatch(vertex.name.decode("utf-8", "replace"))
            if not found:  # BuildKit's own
                return
            step.place, step.stage, step.text = plain(found["place"]), found["stage"] or "", plain(found["text"])
            step.name = f"[{step.place}] {step.text}"
            self._stages.add(step.stage)
        if step.is_over:
            return
        if vertex.completed and vertex.cached:
            yield f"{step.name} (CACHED)"
        elif not step.is_told and (vertex.started or vertex.completed):
            yield step.name
        step.is_told |= bool(vertex.started or vertex.completed)
        if vertex.completed:
            step.is_over = True
            yield from self._printed(step, step.lines.rest())
        if vertex.error and not self.failed and not vertex.error.endswith((b"context canceled", b"canceled")):
            self.failed = step

    def _printed(self, step: Step, lines: Iterable[str]) -> Iterator[str]:
        """Yield the output of a step, with its name if steps run in parallel."""
        for line in lines:
            step.disk_full |= is_disk_full(line)
            step.last.append(line)
            self._spoke = step.place
            yield f"[{step.place}] {line}" if len(self._stages) > 1 else line

"""The arguments that several tools share, with what a model is told about them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Code = Annotated[str, Field(description="Sage code, one or more lines")]
SessionName = Annotated[str, Field(description="Name of a session")]
CellNumber = Annotated[int, Field(description="Cell number from an answer's status line")]
WaitSeconds = Annotated[
    float, Field(description="Seconds to wait before answering 'running'; 0 to 3600")
]
TimeLimit = Annotated[float, Field(description="Seconds after which the cell is interrupted")]
RequestId = Annotated[str, Field(description="Your own name for this request, to repeat it safely")]
MaxChars = Annotated[int, Field(description="Characters of output in the answer")]

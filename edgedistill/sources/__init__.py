"""What users have: prompts in other forms than our own rows, read as a stream.

A source is a file or a folder. Its container (lines, a JSON list, CSV, Parquet, text files) gives one record after
another; its format says how a record is read as a conversation. Both are recognised by content. A record that cannot
be read is told with file and line, and does not stop those after it.
"""

from __future__ import annotations

from .containers import text_files
from .conversation import Conversation
from .formats import FORMATS, Columns, Source, recognised
from .reading import Found, content, conversations, is_own, named, row

__all__ = [
    "FORMATS",
    "Columns",
    "Conversation",
    "Found",
    "Source",
    "content",
    "conversations",
    "is_own",
    "named",
    "recognised",
    "row",
    "text_files",
]

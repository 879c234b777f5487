"""What lies on disk, and what is said when something is wrong with it.

Enters: paths. Leaves: the content of JSON, CSV and safetensors files, checked; or `BadInput`, one
sentence that names the file, the reason and the remedy. Everything is written whole or not at all.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.files.errors import BadInput
    from lib.files.json_file import read_json, write_json
    from lib.files.paths import ROOT
    from lib.files.text import listed, printable, say
    from lib.files.whole_writes import whole_folder

__getattr__, __dir__ = lazy_exports(__name__, __file__)

"""Photos -> a checked, cropped, captioned data set, and the class images beside it.

Enters: a folder of photos, which is never changed. Leaves: a data set in the Hugging Face
imagefolder form, written whole or not at all. A new check of photos belongs into `folder_scan`, a
new file format into `photo_file`.
"""

from typing import TYPE_CHECKING

from lib.files.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from lib.dataset.class_images import draw_class_images
    from lib.dataset.folder_scan import report, scan
    from lib.dataset.photo_file import open_photo
    from lib.dataset.photo_tiles import contact_sheet
    from lib.dataset.preparation import plan, prepare, read_words

__getattr__, __dir__ = lazy_exports(__name__, __file__)

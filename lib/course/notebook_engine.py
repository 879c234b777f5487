"""A papermill engine that tells a watcher which cell starts."""

from papermill.engines import NBClientEngine, papermill_engines
from traitlets.config import Config

ENGINE = "course"


# Where both sides can, what kernel and runner say to each other is encrypted; otherwise each kernel
# prints a warning into the progress.
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})


class CourseEngine(NBClientEngine):
    """papermill's own engine, with `progress.at(index, cells)` called before each cell."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, progress=None, **kwargs):
        start = nb_man.cell_start

        def cell_start(cell, cell_index=None, **more):
            progress.at(cell_index, nb_man.nb.cells)
            return start(cell, cell_index, **more)

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, config=ENCRYPTED, **kwargs)


papermill_engines.register(ENGINE, CourseEngine)

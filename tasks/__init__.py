"""What the pipeline does: one module a stage, and the packages they are made of."""

import gc
import os
import sys

# Before torch is imported, or it is too late: threads that wait spin, and where another process
# holds a core they wait long. Sleeping instead costs nothing measurable on an idle machine and
# keeps a two-thread step from becoming ten times slower on a busy one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A stage is starting (`python -m tasks.…`): what torch and transformers create while they are
# imported lives as long as the process, and looking through it for garbage costs a second.
# `tasks.stage.run` switches the collector on again.
if sys.argv[:1] == ["-m"]:
    gc.disable()

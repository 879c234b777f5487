"""Pythons for notebooks that start warm: forked from a process that has imported the packages.

A fresh Python imports torch, diffusers, transformers and peft for five seconds before a notebook's
first line of its own. A forked one has them, and nothing of `lib`: each notebook still has a
process, a namespace and a `lib` of its own. The course itself runs on fresh Pythons.
"""

import gc
import importlib
import json
import logging
import os
import runpy
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

KERNEL = "ipykernel_launcher"
PACKAGES = (
    "ipykernel.debugger",
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "accelerate",
    "bitsandbytes",
    "peft",
    "psutil",
    "pydantic",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.processing_auto",
    "transformers.models.clip.image_processing_pil_clip",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers",
    "transformers.models.siglip.modeling_siglip",
)


class Warm:
    """The process that has the packages; `launch_kernel` stands in for jupyter_client's."""

    def __init__(self, launch_otherwise):
        self.launch_otherwise, self.lock = launch_otherwise, threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-Xfrozen_modules=off", __file__],
            env=os.environ
            | {f"{name}_VERBOSITY": "error" for name in ("TRANSFORMERS", "DIFFUSERS")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, **question):
        with self.lock:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())

    def launch_kernel(self, cmd, env=None, cwd=None, **options):
        here, there = (Path(python).parent.resolve() for python in (sys.executable, cmd[0]))
        if here != there or KERNEL not in cmd:
            return self.launch_otherwise(cmd, env=env, cwd=cwd, **options)
        words = cmd[cmd.index(KERNEL) + 1 :]
        env = dict(os.environ if env is None else env)
        return Forked(self, self.ask(words=words, env=env, cwd=str(cwd or os.getcwd())))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Forked(SimpleNamespace):
    """A kernel's process, with what jupyter_client uses of `subprocess.Popen`."""

    def __init__(self, warm, pid):
        super().__init__(warm=warm, pid=pid, returncode=None, stdin=None, stdout=None, stderr=None)

    def poll(self):
        if self.returncode is None:
            self.returncode = self.warm.ask(ended=self.pid)
        return self.returncode

    def wait(self):
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


# --- in the process that has the packages


def begin(words, env, cwd):
    """Become a kernel as a fresh Python of these words, environment and folder would."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # standard output was for answers
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    told = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [p for p in told if p] + [p for p in sys.path[1:] if p not in told]
    sys.argv = [KERNEL, *words]
    runpy.run_module(KERNEL, run_name="__main__", alter_sys=True)


def serve():
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # a kernel ends with its parent
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # as in lib.models.pipeline
    for package in PACKAGES:
        importlib.import_module(package)
    assert not [name for name in sys.modules if name.split(".")[0] in ("lib", "matplotlib")]
    gc.collect()
    gc.freeze()  # what all have in common is neither looked through nor copied again
    for line in sys.stdin:
        question = json.loads(line)
        if "ended" in question:
            pid, status = os.waitpid(question["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif answer := os.fork():
            os.setpgid(answer, answer)  # here, so that it is done when the answer is read
        else:
            begin(**question)
            return
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()

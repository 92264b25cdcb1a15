"""``python -m forgetkit``, which launchers such as ``accelerate launch -m`` can start."""

from forgetkit.cli import app

if __name__ == "__main__":
    app(prog_name="forgetkit")

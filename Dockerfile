# simclr_pl in a container:
#
#   docker build --tag simclr_pl .
#   mkdir -p data runs      # or Docker makes them, as root
#   docker run --gpus all --ipc host --user "$(id -u):$(id -g)" -v "$PWD/data:/simclr_pl/data" \
#       -v "$PWD/runs:/simclr_pl/runs" simclr_pl fit --config configs/cifar.yaml --run_dir runs/cifar
#   apptainer build simclr_pl.sif docker-daemon:simclr_pl:latest     # for scripts/slurm.sbatch
#
# The base has the torch of constraints.txt, so that the image is what scripts/install.sh makes. With
# another one (--build-arg BASE=pytorch/pytorch:2.14.0-cuda13.2-cudnn9-runtime) torch and torchvision
# stay the base's, which have to be new enough for pyproject.toml, and the rest is of constraints.txt.
# A base without torch (python:3.12-slim) gets all of it from PyPI.
ARG BASE=pytorch/pytorch:2.15.0-cuda13.2-cudnn9-runtime
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# What torch.compile needs (model.compiled, data.compiled), on CPUs and for Triton.
# The base's distribution decides on their versions, and the base is an argument:
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /simclr_pl
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY simclr_pl simclr_pl
COPY configs configs

# An environment that sees the base's packages, and leaves them as they are: pip may not change those
# of a distribution's Python, and would download another torch where a constraint says so.
RUN held=$(python3 -m pip list --format freeze | grep -E '^torch(vision)?==' || true) \
    && if [ -n "$held" ]; then sed -E '/^torch(vision)?==/d' constraints.txt; else cat constraints.txt; fi \
        >/tmp/constraints.txt \
    && echo "$held" >>/tmp/constraints.txt \
    && python3 -m venv --without-pip --system-site-packages /opt/simclr_pl \
    && /opt/simclr_pl/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
        --constraint /tmp/constraints.txt --editable . \
    && rm /tmp/constraints.txt

# Clusters run containers as users that the image has never heard of: whoever it is may write data,
# runs and the caches of W&B, Matplotlib and the compiler, which are all below HOME.
ENV PATH=/opt/simclr_pl/bin:$PATH HOME=/home/simclr USER=simclr PYTHONUNBUFFERED=1
# The files may come from a clone that only its owner can read.
RUN chmod --recursive a+rX . && mkdir --parents data runs "$HOME" && chmod 1777 data runs "$HOME"
VOLUME ["/simclr_pl/data", "/simclr_pl/runs"]
USER 10001:10001

ENTRYPOINT ["python", "-m", "simclr_pl"]
CMD ["--help"]

# condexp in an image. For a CPU, and for a GPU on a base that has CUDA and torch already:
#   docker build -t condexp:0.2.0 .
#   docker build -t condexp:0.2.0-cuda --build-arg BASE=pytorch/pytorch:2.6.0-cuda12.6-cudnn9-runtime .
#   docker run --rm -v "$PWD/outputs:/runs/outputs" condexp:0.2.0 trainer.epochs=5
# --build-arg TORCH_INDEX=URL takes torch from another index than pip's own: PyTorch's of CPU wheels are a tenth of the size.
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" torch torchvision; fi

COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY condexp /src/condexp
COPY conf /src/conf
COPY hydra_plugins /src/hydra_plugins
RUN pip install --no-cache-dir '/src[local,slurm]' && rm -r /src

# Runs go to /runs/outputs: mount a folder there. Exit code 75 is said of a run that was stopped: the same command resumes it.
WORKDIR /runs
ENTRYPOINT ["condexp"]

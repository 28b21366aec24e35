# docker build -t robustsweep .
# docker run --rm -v "$PWD:/study" robustsweep run my-first.yaml
#
# GPUs: the default wheels of torch hold CUDA; add --gpus all. Trials of this container are processes in it.
FROM python:3.12-slim

# MLflow looks for git, which is not here.
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 GIT_PYTHON_REFRESH=quiet

WORKDIR /opt/robustsweep
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY orchestrator orchestrator
COPY robustsweep robustsweep
COPY trainables trainables
RUN pip install -c constraints.txt '.[cluster,data,medical,onnx]'

RUN useradd --create-home --uid 1000 robustsweep && mkdir /study && chown robustsweep /study
USER 1000
WORKDIR /study
ENTRYPOINT ["robustsweep"]
CMD ["--help"]

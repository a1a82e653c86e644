# A render worker. TORCH_BACKEND is the build of PyTorch: cpu, or a CUDA that the host's driver supports (cu130, cu126).
# From the repository's root: docker build -f deploy/worker.Dockerfile --build-arg TORCH_BACKEND=cu130 -t huafang-worker .
FROM python:3.13-slim AS build
ARG TORCH_BACKEND=cpu
RUN pip install --no-cache-dir uv==0.13.9
ENV VIRTUAL_ENV=/opt/huafang UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
RUN uv venv "$VIRTUAL_ENV"
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN uv pip install --torch-backend="$TORCH_BACKEND" --constraints constraints.txt --requirements pyproject.toml --extra worker
COPY . .
RUN uv pip install --no-deps . && cp deploy/health.py "$VIRTUAL_ENV/"

FROM python:3.13-slim
# /models holds the imported models; a volume mounted there gets its owner from this folder.
RUN useradd --uid 10001 --create-home huafang && install --directory --owner huafang /models
COPY --from=build /opt/huafang /opt/huafang
ENV PATH=/opt/huafang/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/models/.hub HUAFANG_HOME=/models HUAFANG_MODELS_DIR=/models
USER 10001
WORKDIR /home/huafang
CMD ["huafang", "serve", "worker"]

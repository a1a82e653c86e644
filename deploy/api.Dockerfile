# The API, the control worker and the one-shot migrate. Without torch: none of them renders.
# From the repository's root: docker build -f deploy/api.Dockerfile -t huafang-api .
FROM python:3.13-slim AS build
RUN pip install --no-cache-dir uv==0.13.9
ENV VIRTUAL_ENV=/opt/huafang UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never
RUN uv venv "$VIRTUAL_ENV"
WORKDIR /src
# The dependencies first: they change less often than the code, so their layer is cached.
COPY pyproject.toml constraints.txt ./
RUN uv pip install --constraints constraints.txt --requirements pyproject.toml --extra datasets
COPY . .
RUN uv pip install --no-deps . && cp deploy/health.py "$VIRTUAL_ENV/"

FROM python:3.13-slim
# /models holds the imported models of this host; a volume mounted there gets its owner from this folder.
RUN useradd --uid 10001 --create-home huafang && install --directory --owner huafang /models
COPY --from=build /opt/huafang /opt/huafang
ENV PATH=/opt/huafang/bin:$PATH PYTHONUNBUFFERED=1 HUAFANG_MODELS_DIR=/models
USER 10001
WORKDIR /home/huafang
EXPOSE 8000
CMD ["huafang", "serve", "api", "--host", "0.0.0.0", "--port", "8000"]

# A small image for CPUs that serves a model; docs/scaling.md shows its use.
FROM python:3.11-slim AS build

# Extras of pyproject.toml: "serve,onnx" or "serve,openvino" serve exported files.
ARG EXTRAS=serve
WORKDIR /source
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH

# PyTorch in a layer of its own, which changes of the code leave as it is. The index has builds without CUDA.
COPY constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu torch torchvision

COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY configs configs
COPY d2_maskrcnn d2_maskrcnn
RUN pip install --no-cache-dir --constraint constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu ".[${EXTRAS}]"

FROM python:3.11-slim

RUN useradd --create-home --uid 10001 app
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/app

EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["d2-maskrcnn"]
CMD ["serve", "/model/model.pth", "--host", "0.0.0.0", "--port", "8000"]

# docker build -t qs-attn . && docker run --gpus all -v DATA:/qs-attn/datasets -v RUNS:/qs-attn/checkpoints qs-attn --fast
# Without a GPU: docker build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu ... saves 5 GB.
FROM python:3.12-slim
ARG PIP_EXTRA_INDEX_URL
WORKDIR /qs-attn
COPY requirements*.txt ./
RUN pip install --no-cache-dir -r requirements.txt
COPY . .
ENTRYPOINT ["python", "train.py"]

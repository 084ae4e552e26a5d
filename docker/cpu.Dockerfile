# Simulator, training and evaluation without a GPU:
#     docker build -f docker/cpu.Dockerfile -t so101 . && docker run --rm -it so101 make demo
FROM python:3.12-slim
# EGL renders; FFmpeg's libraries encode and decode videos.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg git libegl1 libgl1-mesa-dri libgles2 make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /so101
COPY . .
# uv takes the wheels of PyTorch without CUDA: about 4 GB less.
ENV UV_TORCH_BACKEND=cpu PATH="/so101/.venv/bin:$PATH"
RUN make setup
CMD ["bash"]

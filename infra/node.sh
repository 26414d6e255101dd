# The environment of a machine of infra/local-cluster.yaml, which has ~/.bashrc read it; nothing secret stands here.
PATH="$HOME/resnet-ray/.venv/bin:$PATH"
export RAY_AUTH_MODE=token                  # the token itself is ~/.ray/auth_token
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_UP_enable_autoscaler_v2=0        # the newer autoscaler never contacts machines of the provider `local`
export RAY_JOB_STOP_WAIT_TIME_S=120         # a job that is stopped commits a checkpoint first
export MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_TRACKING_URI=http://127.0.0.1:5000    # drivers run on the head; workers do not talk to MLflow
# Where the head is and the keys of its S3 server: RESNET_RAY_STORAGE, AWS_ENDPOINT_URL and so on.
set -a
. "$HOME/.config/resnet-ray/storage.env"
set +a

# requires: litellm[proxy]==1.106.2
# manners: plain stream scoped
# mypy: ignore-errors
"""LiteLLM's proxy in front of Parley: the official SDK asks the proxy, the proxy asks Parley.

`scoped` sends the header of a chat UI, which the proxy must pass on, and in the last turn forgets the oldest messages:
without a scope that history would belong to no conversation.
"""

import json
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

from cue import BASE_URL, KEY, MANNER, MODEL, TURNS, heard
from openai import OpenAI


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as line:
        return line.getsockname()[1]


def ready(proxy: subprocess.Popen) -> None:
    """It takes calls once it listens."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            if proxy.poll() is not None:
                sys.exit("the proxy did not start")
            time.sleep(0.1)


def talk(url: str) -> None:
    scope = {"x-openwebui-chat-id": secrets.token_hex(8)} if MANNER == "scoped" else {}
    client = OpenAI(base_url=f"{url}/v1", api_key=master_key, default_headers=scope)
    messages = [{"role": "system", "content": "Be kind."}]
    for number, turn in enumerate(TURNS):
        if MANNER == "scoped" and number == 2:
            del messages[1:3]
        messages.append({"role": "user", "content": turn})
        answer = client.chat.completions.with_raw_response.create(
            model="shop", messages=messages, stream=MANNER == "stream"
        )
        if MANNER == "stream":
            chunks = list(answer.parse())
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        else:
            text = answer.parse().choices[0].message.content
        messages.append({"role": "assistant", "content": text})
        heard(text, conversation=answer.headers.get("llm_provider-x-parley-conversation"))


port, master_key = free_port(), f"sk-{secrets.token_hex(32)}"
model = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY}
config = {
    "model_list": [{"model_name": "shop", "litellm_params": model}],
    "general_settings": {"master_key": master_key, "forward_client_headers_to_llm_api": True},
}
Path("proxy.yaml").write_text(json.dumps(config))  # JSON is YAML
command = [str(Path(sys.executable).with_name("litellm")), "--config", "proxy.yaml", "--host", "127.0.0.1"]
with Path("proxy.log").open("w") as log:
    proxy = subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=subprocess.STDOUT)
try:
    ready(proxy)
    talk(f"http://127.0.0.1:{port}")
except BaseException:
    sys.stderr.write(Path("proxy.log").read_text()[-3000:])
    raise
finally:
    proxy.terminate()
    proxy.wait(10)

# requires: gradio==6.31.0 openai==3.54.0 selenium==4.51.0
# programs: chromium chromedriver
# mypy: ignore-errors
"""gradio: `load_chat`, with the turns typed into its page in a headless Chromium."""

import time
from pathlib import Path

import gradio
from cue import BASE_URL, KEY, MODEL, TURNS, heard
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,1600"
)


def typed(box, text: str) -> None:
    for number, line in enumerate(text.split("\n")):
        if number:
            box.send_keys(Keys.SHIFT, Keys.ENTER)
        box.send_keys(line)
    box.send_keys(Keys.ENTER)


def settled(page, count: int) -> str:
    """The bot's newest message, once there are so many and it has stopped growing."""
    before, since = "", time.monotonic()
    while True:
        found = page.find_elements(By.CSS_SELECTOR, ".message.bot [data-testid=bot]")
        text = found[-1].text if len(found) == count else ""
        if text != before:
            before, since = text, time.monotonic()
        elif text and time.monotonic() - since > 1.5:
            return text
        time.sleep(0.1)


chat = gradio.load_chat(BASE_URL, model=MODEL, token=KEY, streaming=True)
_, url, _ = chat.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
options = webdriver.ChromeOptions()
options.binary_location = "/usr/bin/chromium"
for flag in [*FLAGS.split(), f"--user-data-dir={Path.cwd() / 'chromium'}"]:
    options.add_argument(flag)
page = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
page.implicitly_wait(20)
try:
    page.get(url)
    for number, turn in enumerate(TURNS, 1):
        typed(page.find_element(By.CSS_SELECTOR, "textarea"), turn)
        heard(settled(page, number))
finally:
    page.quit()
    chat.close()

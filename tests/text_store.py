"""A store of texts in memory: what processes that are threads share (`mesh.group.Store`)."""

import threading


class Texts:
    """Keys and values, with a bell for those who wait."""

    def __init__(self):
        self.held, self.news = {}, threading.Condition()

    def set(self, key, value):
        with self.news:
            self.held[key] = value
            self.news.notify_all()

    def get(self, key, seconds):
        with self.news:
            self.news.wait_for(lambda: key in self.held, seconds)
            return self.held.get(key)

    def find(self, prefix):
        with self.news:
            return {key: value for key, value in self.held.items() if key.startswith(prefix)}

    def delete(self, prefix):
        with self.news:
            self.held = {k: v for k, v in self.held.items() if not k.startswith(prefix)}

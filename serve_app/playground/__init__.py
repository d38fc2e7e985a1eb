"""The playground: captions and chats in a browser, at `/playground`, as one more client of the service's own API.

Everything it asks goes through `/v1` with the visitor's own key, so that limits, the image gate and the metrics
hold for it as for any client. It is an application of its own and needs Gradio, the extra `playground`.
"""

/* One of the threads that compute: it is handed the model once, then questions about cuts, one at a time. */
"use strict";

let model;
onmessage = ({ data }) => {
  if (data.file) {
    model = new GPT2(readSafetensors(data.file), data.config, data.means);
    postMessage("ready");
  } else {
    postMessage(data.write ? model.write(data.ids, data.write, data.cut) : model.nats(data.ids, data.cut));
  }
};

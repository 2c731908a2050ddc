"use strict";

const make = (kind, text, ...children) => {
  const element = document.createElement(kind);
  element.textContent = text;
  element.append(...children);
  return element;
};

function row(first, second) {
  return make("tr", "", make("td", "", make("code", first)), make("td", second));
}

function operation(path, method, told) {
  const table = make("table", "");
  for (const type of Object.keys(told.requestBody?.content ?? {})) table.append(row(type, "takes"));
  for (const [status, { description }] of Object.entries(told.responses)) table.append(row(status, description));
  const summary = make("summary", "", make("b", method.toUpperCase()), make("code", path), make("span", told.summary));
  return make("details", "", summary, make("p", told.description ?? ""), table);
}

async function start() {
  const content = await (await fetch("openapi.json")).json();
  document.getElementById("title").textContent = content.info.title;
  for (const [path, methods] of Object.entries(content.paths)) {
    for (const [method, told] of Object.entries(methods)) {
      document.getElementById("paths").append(operation(path, method, told));
    }
  }
  const here = new URL(".", location.href).href;
  document.getElementById("shell").textContent = [
    `curl -F image=@a.jpg -F image=@b.jpg ${here}predict`,
    `curl --data-binary @a.jpg -H 'Content-Type: image/jpeg' ${here}predict`,
    `base64 -w0 a.jpg | jq -R '{images: [.]}' | curl --json @- ${here}predict`,
  ].join("\n");
}

start();

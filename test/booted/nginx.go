package booted

import (
	"os"
	"path/filepath"
)

// WithNginx has an nginx run in the machine, with the shipped files in its one site, which is on port 80. The machine
// has a network of its own; see [OwnNetwork].
func WithNginx() Option {
	return func(m *Machine) {
		m.nginx = true
		OwnNetwork()(m)
		for name, shipped := range map[string]string{"etc/nginx/conf.d/wscast.conf": "wscast-http.conf", NginxSnippet[1:]: "wscast.conf"} {
			text, err := os.ReadFile(filepath.Join(layers.install, "usr/share/wscast/nginx", shipped))
			if err != nil {
				m.t.Fatal(err)
			}
			m.file(name, string(text))
		}
		m.file("etc/nginx/sites-enabled/default", "server { listen 127.0.0.1:80; include snippets/wscast.conf; }\n")
	}
}

// NginxSnippet is what the site of [WithNginx] includes.
const NginxSnippet = "/etc/nginx/snippets/wscast.conf"

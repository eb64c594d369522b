package kbs

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/pelletier/go-toml/v2"
)

// Members of the init data's map that this broker reads. Both are bound to evidence by themselves, the manifest by PCR 15 and the command line by
// PCR 9; what else is in the map is passed over.
const (
	// dataManifest is the signed manifest: the DSSE envelope as it is on the disk.
	dataManifest = "manis.manifest"
	// dataCmdline is the kernel's command line, for evidence that has none: without it that of the reference values.
	dataCmdline = "manis.cmdline"
)

// initData is the document that a machine was started with: a map of strings, as TOML or JSON.
type initData struct {
	Format string `json:"format"`
	Body   string `json:"body"`
}

// read returns the members that matter.
func (d *initData) read() (envelope []byte, cmdline string, err error) {
	if d == nil {
		return nil, "", fmt.Errorf("there is no init data: the signed manifest is its member data.%q", dataManifest)
	}
	var body struct {
		Data map[string]string `json:"data" toml:"data"`
	}
	switch d.Format {
	case "toml":
		err = toml.Unmarshal([]byte(d.Body), &body)
	case "json":
		err = json.Unmarshal([]byte(d.Body), &body)
	default:
		err = fmt.Errorf("the format %.40q is neither toml nor json", d.Format)
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the init data: %w", err)
	}
	if body.Data[dataManifest] == "" {
		return nil, "", fmt.Errorf("the init data has no data.%q, the signed manifest", dataManifest)
	}
	if len(body.Data[dataCmdline]) > 4096 {
		return nil, "", errors.New("the init data has a command line of more than 4096 bytes")
	}
	return []byte(body.Data[dataManifest]), body.Data[dataCmdline], nil
}

package node

// driverState is what the driver makes of the view.
type driverState struct{}

func newDriverState() *driverState { return &driverState{} }
